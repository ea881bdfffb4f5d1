"""Replays a sample journal against the pure order of samples: what each sample of each epoch went through.

The entries say where each step stood and what its ranks really took; the order says what belongs there.
Where both agree for every step, and the steps follow each other without gap or overlap, each sample took
effect exactly once. Otherwise the steps and the samples are named.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eagleray.data.digests import LANE_MASK, LANES, Entry, Total
from eagleray.data.order import SampleOrder
from eagleray.data.suspects import Fault, Stretch, find_fault, hashes_of, split_by_epoch

SEARCHED_STEPS = 20
"""A fault of every step would take hours to search, and the first ones tell what it is."""
_SHOWN_SAMPLES = 8

Kind = Literal["skipped", "repeated", "swapped", "unknown", "gap", "overlap", "order", "checkpoint"]
"""Of a step's samples the first four; of its place in the journal the next three; of a checkpoint's sums."""


@dataclass(frozen=True)
class Finding:
    """What contradicts the proof, at one step."""

    step: int
    kind: Kind
    text: str
    """In words; names the step and the samples."""
    missing: tuple[int, ...] = ()
    """Samples that it, or the journal before it, left out; as positions in the part that is trained on."""
    extra: tuple[int, ...] = ()
    """Samples that it took although they are not its own, or had been taken."""


@dataclass(frozen=True)
class EpochCount:
    """What became of the samples of one epoch that the run has reached."""

    epoch: int
    """From 1, as a run's log counts them."""
    num_samples: int
    num_reached: int
    num_once: int
    """Took effect exactly once."""
    num_missing: int = 0
    num_repeated: int = 0
    num_without_effect: int = 0
    """Used up by a step that was skipped, because its gradient was not finite."""
    num_unknown: int = 0
    """Belong to a step that took others, and nobody can tell which."""


@dataclass(frozen=True)
class Replay:
    """What a journal proves."""

    findings: tuple[Finding, ...]
    epochs: tuple[EpochCount, ...]
    total: Total
    """Of what the steps really took."""

    @property
    def is_exact(self) -> bool:
        """Whether every sample that was reached was taken exactly once."""
        return not self.findings


def replay(order: SampleOrder, entries: Sequence[Entry]) -> Replay:
    """Compare what the steps of a run took with what the order says.

    Args:
        order: of the part that was trained on.
        entries: one per step from step 1 on, in the order of the journal's lineage.
    """
    findings = _check_places(order, entries)
    faults: list[tuple[Entry, Fault | None]] = []
    for entry in entries:
        if _is_as_expected(order, entry):
            continue
        fault = find_fault(order, entry) if len(faults) < SEARCHED_STEPS else None
        faults.append((entry, fault))
        findings.append(_explained(order, entry, fault, entries))
    findings.sort(key=lambda finding: finding.step)
    return Replay(tuple(findings), tuple(_count(order.num_samples, entries, faults)), Total().plus(entries))


def _is_as_expected(order: SampleOrder, entry: Entry) -> bool:
    stretches = split_by_epoch(entry.consumed_before, entry.consumed_after, order.num_samples)
    lanes = np.zeros(LANES, np.uint64)
    for stretch in stretches:
        lanes += hashes_of(order, stretch).sum(axis=1)
    lanes &= np.uint64(LANE_MASK)
    return entry.count == sum(map(len, stretches)) and tuple(lanes.tolist()) == entry.lanes


def _check_places(order: SampleOrder, entries: Sequence[Entry]) -> list[Finding]:
    """Steps that do not follow each other, in number or in their place in the order."""
    findings: list[Finding] = []
    step = consumed = 0
    for entry in entries:
        if entry.step != step + 1:
            before = f"follows step {step}" if step else "is the first"
            findings.append(Finding(entry.step, "order", f"step {entry.step} {before} in the journal"))
        at = f"step {entry.step} begins after {entry.consumed_before} samples of the run"
        if entry.consumed_before > consumed:
            ids = _ids(order, consumed, entry.consumed_before)
            text = f"{at}, and {consumed} had been taken before it: nobody took {_named(ids)}"
            findings.append(Finding(entry.step, "gap", text, missing=ids))
        elif entry.consumed_before < consumed:
            ids = _ids(order, entry.consumed_before, min(consumed, entry.consumed_after))
            text = f"{at}, and {consumed} had been taken before it: twice {_named(ids)}"
            findings.append(Finding(entry.step, "overlap", text, extra=ids))
        if entry.consumed_after <= entry.consumed_before:
            text = f"{at} and ends after {entry.consumed_after}: it does not go forward"
            findings.append(Finding(entry.step, "order", text))
        step, consumed = entry.step, max(consumed, entry.consumed_after)
    return findings


def _explained(order: SampleOrder, entry: Entry, fault: Fault | None, entries: Sequence[Entry]) -> Finding:
    """The finding for a step whose sums are wrong."""
    if fault is None:
        own = _ids(order, entry.consumed_before, entry.consumed_after)
        text = f"step {entry.step} took {entry.count} samples, and not those that belong to it: {_named(own)}"
        return Finding(entry.step, "unknown", text)
    missing = _ids(order, fault.missing.start, fault.missing.stop)
    extra = _ids(order, fault.extra.start, fault.extra.stop)
    left_out = f"{_named(missing)} {_epoch(order, entry.consumed_before)}"
    if not extra:
        return Finding(entry.step, "skipped", f"step {entry.step} skipped {left_out}", missing=missing)
    took = f"step {entry.step} took {_named(extra)} {_epoch(order, fault.extra.start)}"
    home = _home(fault.extra, entry, entries)
    if not missing:
        where = "twice" if home is None else f"besides, {home}"
        return Finding(entry.step, "repeated", f"{took} {where}", extra=extra)
    text = f"{took} twice, and not {left_out}" if home is None else f"{took}, {home}, and not {left_out}"
    return Finding(entry.step, "swapped", text, missing, extra)


def _home(extra: Stretch, entry: Entry, entries: Sequence[Entry]) -> str | None:
    """Where the extra samples belong, in words; None where they belong to the step itself."""
    if entry.consumed_before <= extra.start and extra.stop <= entry.consumed_after:
        return None
    belong = "which belongs" if len(extra) == 1 else "which belong"
    index = bisect_right(entries, extra.start, key=lambda other: other.consumed_before) - 1
    if index >= 0 and extra.start < entries[index].consumed_after:
        return f"{belong} to step {entries[index].step}"
    return f"{belong} to a later step"


def _epoch(order: SampleOrder, sample: int) -> str:
    return f"of epoch {sample // order.num_samples + 1}"


def _ids(order: SampleOrder, start: int, stop: int) -> tuple[int, ...]:
    """Positions of the samples `start` up to `stop` of the run."""
    ids: list[int] = []
    for stretch in split_by_epoch(start, stop, order.num_samples):
        epoch, first = divmod(stretch.start, order.num_samples)
        ids += order.positions(epoch, first, first + len(stretch)).tolist()
    return tuple(ids)


def _named(ids: Sequence[int]) -> str:
    """For instance "sample 7", or "12 samples (7, 3, 9, …)"."""
    if len(ids) == 1:
        return f"sample {ids[0]}"
    shown = ", ".join(map(str, ids[:_SHOWN_SAMPLES]))
    return f"{len(ids)} samples ({shown}{', …' if len(ids) > _SHOWN_SAMPLES else ''})"


def _count(
    num_samples: int, entries: Sequence[Entry], faults: Sequence[tuple[Entry, Fault | None]]
) -> list[EpochCount]:
    """The samples of each epoch by what became of them.

    Every step, and every piece that a fault adds or takes away, covers a stretch of the run's order: how
    deep each sample is covered is a sum over the edges of the stretches, with no array of the samples.
    """
    reached = max((entry.consumed_after for entry in entries), default=0)
    taken, idle, unknown = _Layer(), _Layer(), _Layer()
    for entry in entries:
        (idle if entry.is_skipped else taken).add(entry.consumed_before, entry.consumed_after)
    for entry, fault in faults:
        layer = idle if entry.is_skipped else taken
        if fault is None:
            layer.add(entry.consumed_before, entry.consumed_after, -1)
            unknown.add(entry.consumed_before, entry.consumed_after)
        else:
            layer.add(fault.missing.start, fault.missing.stop, -1)
            layer.add(fault.extra.start, fault.extra.stop)
    bounds = np.array([*range(0, reached, num_samples), reached])
    layers = (taken, idle, unknown)
    points = np.unique(np.concatenate([bounds, *(layer.points() for layer in layers)]))
    points = points[(points >= 0) & (points <= reached)]
    of_taken, of_idle, of_unknown = (layer.depth(points[:-1]) for layer in layers)
    is_known = of_unknown <= 0
    sizes, epochs = np.diff(points), points[:-1] // num_samples

    def number(is_meant: NDArray[np.bool_]) -> NDArray[np.int64]:
        found = np.zeros(len(bounds) - 1, np.int64)
        np.add.at(found, epochs[is_meant], sizes[is_meant])
        return found

    columns = (
        np.diff(bounds),
        number(is_known & (of_taken == 1)),
        number(is_known & (of_taken <= 0) & (of_idle <= 0)),
        number(is_known & (of_taken > 1)),
        number(is_known & (of_taken <= 0) & (of_idle > 0)),
        number(~is_known),
    )
    return [
        EpochCount(index + 1, num_samples, *row)
        for index, row in enumerate(zip(*(column.tolist() for column in columns), strict=True))
    ]


class _Layer:
    """How often each sample is covered, kept as the edges of stretches."""

    def __init__(self) -> None:
        self._edges: dict[int, int] = {}

    def add(self, start: int, stop: int, amount: int = 1) -> None:
        if start < stop:
            self._edges[start] = self._edges.get(start, 0) + amount
            self._edges[stop] = self._edges.get(stop, 0) - amount

    def points(self) -> NDArray[np.int64]:
        return np.array(list(self._edges), np.int64)

    def depth(self, points: NDArray[np.int64]) -> NDArray[np.int64]:
        """At each of the points (sorted)."""
        edges = np.array(sorted(self._edges.items()), np.int64).reshape(-1, 2)
        depths = np.concatenate([[0], np.cumsum(edges[:, 1])])
        return depths[np.searchsorted(edges[:, 0], points, side="right")]
