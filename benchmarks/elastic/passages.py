"""From one formation of a run's ranks to the next: what it took and cost, by the run's own records. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eagleray.training.observer import Change

Record = dict[str, Any]


@dataclass(frozen=True)
class Passage:
    """A change of a run's workers that is over: it trains again."""

    change: Change
    step: int
    """The new formation went on from here."""
    last_step: int
    """The newest that is known to have been taken before."""
    last_at: float
    """When, seconds since the epoch, as all times here."""
    first_at: float
    """When the first new step had been taken: one that is beyond all of those before."""

    @property
    def pause_s(self) -> float:
        """From the end of the last step before to the end of the first one after: one step is part of it."""
        return self.first_at - self.last_at

    @property
    def lost(self) -> int:
        """Steps that had been taken and were taken again."""
        return max(0, self.last_step - self.step)


def passage(change: Change, records: Sequence[Record]) -> Passage | None:
    """The passage to the formation of `change`; None while the first step after it has not been told of.

    Args:
        change: as the run's observer heard it.
        records: all of the run so far, as they were told.
    """
    begun = next((one for one in records if _is_begin(one, change.number)), None)
    if begun is None:
        return None
    before = [one for one in records if one["kind"] in ("at", "step") and one["time"] <= change.time]
    last_step = max((one["step"] for one in before), default=begun["step"])
    kinds = ("step",) if last_step <= begun["step"] else ("step", "at")
    newest = max(begun["step"], last_step)
    after = (one for one in records if one["kind"] in kinds and one["step"] > newest)
    first = next((one for one in after if one["time"] >= begun["time"]), None)
    if first is None:
        return None
    # A planned stop waits for the commit of its last step, which begins when that step is over.
    commits = [one for one in records if one["kind"] == "commit" and one["step"] == begun["step"]]
    ends = [one["time"] for one in before]
    ends += [one["time"] - one["seconds"] for one in commits if one["time"] <= change.time]
    return Passage(
        change,
        step=begun["step"],
        last_step=last_step,
        last_at=max(ends, default=change.time),
        first_at=first["time"] - _late_s(first),
    )


def _late_s(record: Record) -> float:
    """How long before a report the first of its steps was over: a first step may not be told of by itself."""
    if record["kind"] == "at":
        return 0.0
    return record["seconds"] * (1 - 1 / max(1, record["num_steps"]))


def is_one_group(steps: Sequence[Record], size: int, count: int) -> bool:
    """Whether the last `count` steps that stock's rank 0 wrote down are of one group of so many workers.

    By its process: a group that has just been killed was as large as the one that is waited for.
    """
    last = steps[-count:]
    groups = {(one["pid"], one["world"]) for one in last}
    return len(last) == count and len(groups) == 1 and last[-1]["world"] == size


def step_seconds(records: Sequence[Record], since: float, until: float) -> float | None:
    """Mean seconds of a step in the reports that lie wholly between two times; None where there is none."""
    inside = [
        one
        for one in records
        if one["kind"] == "step" and one["time"] - one["seconds"] >= since and one["time"] <= until
    ]
    steps = sum(one["num_steps"] for one in inside)
    return sum(one["seconds"] for one in inside) / steps if steps else None


def paused_seconds(changes: Sequence[Change], records: Sequence[Record], since: float, until: float) -> float:
    """For how long no new step was taken between two times, because of changes; overlaps count once."""
    found = [gone for change in changes if (gone := passage(change, records)) is not None]
    spans = sorted((max(since, one.last_at), min(until, one.first_at)) for one in found)
    total, end = 0.0, since
    for begin, finish in spans:
        total += max(0.0, finish - max(begin, end))
        end = max(end, finish)
    return total


def blocked_seconds(records: Sequence[Record], since: float, until: float) -> float:
    """For how long commits held the run up between two times."""
    return sum(
        one["blocked_s"] for one in records if one["kind"] == "commit" and since <= one["time"] <= until
    )


def _is_begin(record: Record, number: int) -> bool:
    return record["kind"] == "phase" and record["name"] == "training" and record["attempt"] == number
