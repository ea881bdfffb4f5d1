"""From sums of hashes that are wrong to the samples that make the difference.

What a step should have taken is a stretch of the sample order. What it took instead is looked for as that
stretch with one piece missing, one piece more, or one in place of another: one sample, the share of one
rank, or all of it. Each piece is a stretch of the order too, of this epoch or of the ones beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eagleray.data.digests import LANE_MASK, LANES, Entry, lane_hashes
from eagleray.data.order import SampleOrder

_CHUNK_SAMPLES = 1 << 20
"""So much of an epoch is hashed at once: 100 MB."""


@dataclass(frozen=True)
class Stretch:
    """Samples `start` up to `stop` of a run, counted in its order over all epochs, within one epoch."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


NOTHING = Stretch(0, 0)


@dataclass(frozen=True)
class Fault:
    """What a step took otherwise than it should have."""

    missing: Stretch
    """It did not take these, which were its own."""
    extra: Stretch
    """It took these besides."""


def split_by_epoch(start: int, stop: int, num_samples: int) -> list[Stretch]:
    """The samples `start` up to `stop` of the run, one stretch for each epoch that they lie in."""
    ends = [*range((start // num_samples + 1) * num_samples, stop, num_samples), stop]
    starts = [start, *ends[:-1]]
    return [Stretch(low, high) for low, high in zip(starts, ends, strict=True) if low < high]


def hashes_of(order: SampleOrder, stretch: Stretch) -> NDArray[np.uint64]:
    """`lane_hashes` of a stretch [LANES, B], in order."""
    epoch, start = divmod(stretch.start, order.num_samples)
    return lane_hashes(epoch, order.positions(epoch, start, start + len(stretch)))


def find_fault(order: SampleOrder, entry: Entry) -> Fault | None:
    """The smallest difference that explains what the entry's step took; None where none of the kinds does.

    Reads the order of up to three epochs, some times over: 1 to 2 s for a million samples.
    """
    expected = split_by_epoch(entry.consumed_before, entry.consumed_after, order.num_samples)
    if len(expected) != 1:
        return None
    own = hashes_of(order, expected[0])
    difference = (np.array(entry.lanes, np.uint64) - own.sum(axis=1)) & np.uint64(LANE_MASK)
    surplus = entry.count - len(expected[0])
    for num_missing in _lengths(len(expected[0]), surplus, entry.world_size):
        num_extra = num_missing + surplus
        if num_extra < 0 or num_missing == num_extra == 0:
            continue
        # Leaving out piece i and taking piece j: sum(j) = difference + sum(i).
        wanted = (difference[:, None] + _sums(own, num_missing)) & np.uint64(LANE_MASK)
        found = _first_match(order, expected[0], wanted, num_extra)
        if found is not None:
            index, extra = found
            start = expected[0].start + index
            return Fault(Stretch(start, start + num_missing) if num_missing else NOTHING, extra)
    return None


def _lengths(size: int, surplus: int, world_size: int) -> list[int]:
    """How many samples may be missing in one piece: none, one, all that lack, a rank's share, the batch."""
    share = size // world_size
    return sorted({length for length in (0, 1, -surplus, share, share + 1, size) if 0 <= length <= size})


def _first_match(
    order: SampleOrder, own: Stretch, wanted: NDArray[np.uint64], length: int
) -> tuple[int, Stretch] | None:
    """The column of `wanted` [LANES, W] that some piece of that length adds up to, and the piece."""
    if length == 0:
        empty = np.flatnonzero((wanted == 0).all(axis=0))
        return (int(empty[0]), NOTHING) if len(empty) else None
    sorter = np.argsort(_first_lanes(wanted))
    keys = _first_lanes(wanted)[sorter]
    for start, sums in _pieces(order, own, length):
        places = np.searchsorted(keys, _first_lanes(sums)).clip(max=len(keys) - 1)
        for piece in np.flatnonzero(keys[places] == _first_lanes(sums)):
            column = int(sorter[places[piece]])
            if (wanted[:, column] == sums[:, piece]).all():
                return column, Stretch(start + int(piece), start + int(piece) + length)
    return None


def _pieces(order: SampleOrder, own: Stretch, length: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """All stretches of that length, likelier ones first: the first of K samples, and the sums [LANES, K]."""
    num_samples, epoch = order.num_samples, own.start // order.num_samples
    for number in (epoch, epoch - 1, epoch + 1):
        if number < 0 or length > num_samples:
            continue
        for low in range(0, num_samples - length + 1, _CHUNK_SAMPLES):
            high = min(low + _CHUNK_SAMPLES + length - 1, num_samples)
            start = number * num_samples + low
            yield start, _sums(hashes_of(order, Stretch(start, number * num_samples + high)), length)


def _sums(hashes: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """The sums of each `length` hashes in a row [LANES, B - length + 1]; one zero where it is 0."""
    if length == 0:
        return np.zeros((LANES, 1), np.uint64)
    before = np.zeros((LANES, hashes.shape[1] + 1), np.uint64)
    np.cumsum(hashes, axis=1, out=before[:, 1:])
    return (before[:, length:] - before[:, :-length]) & np.uint64(LANE_MASK)


def _first_lanes(sums: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Two lanes in one number, to sort and to search by."""
    return sums[0] << np.uint64(32) | sums[1]
