"""Which samples took effect, as numbers that add up: their count and `LANES` sums of 32-bit hashes.

Each rank digests what its own loss consumes. The sum over ranks and steps is the digest of all of it, in
whatever order it was taken and however it was shared out; another set of samples, or one of them twice, has
the same digest by accident only (1 in 2^128).

Source: Clarke et al., "Incremental multiset hash functions and their application to memory integrity
checking" (ASIACRYPT 2003), the additive hash; here against faults, not against an adversary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eagleray.data.hashing import hashed, key
from eagleray.data.parts import Positions

LANES = 4
LANE_MASK = (1 << 32) - 1
_SAMPLES = 6  # sets these hashes apart from the order's own
_ENTRY_FIELDS = 8


def digest(epoch: int, positions: Positions, weights: NDArray[np.float32]) -> NDArray[np.int64]:
    """What a rank votes for the samples that its loss consumes in one step.

    Args:
        epoch: From 0.
        positions: int64 [B], in the part that is trained on.
        weights: float32 [B]; a sample of weight 0 fills an empty share and does not count.

    Returns:
        int64 [1 + LANES]: the count, and the sum of each lane's hashes. Sums over ranks stay exact: a lane
        of 2^31 samples is below 2^63.
    """
    taken = positions[weights > 0]
    sums = np.empty(1 + LANES, np.int64)
    sums[0] = len(taken)
    sums[1:] = lane_hashes(epoch, taken).sum(axis=1)
    return sums


def lane_hashes(epoch: int, positions: Positions) -> NDArray[np.uint64]:
    """The hash of each sample in each lane, uint64 [LANES, B] below 2^32."""
    bits = hashed(_keys(epoch), positions)
    return np.concatenate([bits >> np.uint64(32), bits & np.uint64(LANE_MASK)])


@lru_cache(maxsize=4)
def _keys(epoch: int) -> NDArray[np.uint64]:
    """One key for each pair of lanes, uint64 [LANES / 2, 1]."""
    return np.array([[key(epoch, pair, _SAMPLES)] for pair in range(LANES // 2)], np.uint64)


@dataclass(frozen=True)
class Entry:
    """One step in the sample journal: where it stood in the order, and what it really took."""

    step: int
    """From 1: the optimizer step that these samples were taken for."""
    consumed_before: int
    """Samples of the run before the step: the cursor at which the step began."""
    consumed_after: int
    count: int
    """Samples that the ranks' losses consumed."""
    lanes: tuple[int, ...]
    """Their sums of hashes over the ranks, each mod 2^32."""
    is_skipped: bool
    """Whether the gradient was not finite: the samples are used up without effect."""
    world_size: int
    generation: int
    """Number of the formation of ranks that took it."""

    @classmethod
    def of(
        cls,
        sums: Sequence[int] | NDArray[np.int64],
        *,
        step: int,
        consumed_before: int,
        consumed_after: int,
        is_skipped: bool,
        world_size: int,
        generation: int,
    ) -> Entry:
        """The entry of a step whose ranks' digests add up to `sums` [1 + LANES]."""
        count, *lanes = (int(value) for value in sums)
        return cls(
            step,
            consumed_before,
            consumed_after,
            count,
            tuple(lane & LANE_MASK for lane in lanes),
            is_skipped,
            world_size,
            generation,
        )

    def to_json(self) -> list[Any]:
        """The fields in their order, lanes as a list, the flag as 0 or 1."""
        return [
            self.step,
            self.consumed_before,
            self.consumed_after,
            self.count,
            list(self.lanes),
            int(self.is_skipped),
            self.world_size,
            self.generation,
        ]

    @classmethod
    def from_json(cls, fields: Sequence[Any]) -> Entry:
        """The entry that `to_json` wrote. Raises: ValueError where it did not."""
        if len(fields) != _ENTRY_FIELDS or not isinstance(fields[4], list) or len(fields[4]) != LANES:
            raise ValueError(f"no entry of a sample journal: {fields!r}")
        numbers = [*fields[:4], *fields[4], *fields[5:]]
        if any(type(number) is not int for number in numbers):
            raise ValueError(f"an entry of a sample journal holds whole numbers only: {fields!r}")
        step, before, after, count, lanes, flag, world_size, generation = fields
        return cls(step, before, after, count, tuple(lanes), bool(flag), world_size, generation)


@dataclass(frozen=True)
class Total:
    """Count and lanes (mod 2^32) of all samples of a run so far, those of skipped steps too."""

    count: int = 0
    lanes: tuple[int, ...] = (0,) * LANES

    def plus(self, entries: Iterable[Entry]) -> Total:
        """The total with these steps too."""
        count, lanes = self.count, list(self.lanes)
        for entry in entries:
            count += entry.count
            lanes = [(lane + more) & LANE_MASK for lane, more in zip(lanes, entry.lanes, strict=True)]
        return Total(count, tuple(lanes))

    def to_json(self) -> dict[str, Any]:
        """`count` and `lanes`, for a checkpoint's state."""
        return {"count": self.count, "lanes": list(self.lanes)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Total:
        """The total that `to_json` wrote, whatever else lies beside it."""
        return cls(int(fields["count"]), tuple(int(lane) for lane in fields["lanes"]))
