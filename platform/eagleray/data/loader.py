"""From the sample order to what one rank trains on in one step."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eagleray.data.order import SampleOrder
from eagleray.data.parts import Array, Arrays, Part, Positions
from eagleray.data.prefetch import prefetched

PREFETCHED_SHARDS = 4


class Transform(Protocol):
    """A change of the samples of a batch; random ones depend on (seed, epoch, position) and nothing else."""

    def __call__(self, arrays: Arrays, *, seed: int, epoch: int, positions: Positions) -> Arrays:
        """The changed samples; may change `arrays` in place."""
        ...


@dataclass(frozen=True)
class Shard:
    """One rank's share of one global batch: at least one sample, so that every rank has a step to take."""

    inputs: Array
    targets: Array
    weights: NDArray[np.float32]
    """[B]: 1, or 0 for the one sample that fills an empty share."""
    positions: Positions
    """[B], in the part."""
    global_size: int
    """Samples of the batch over all ranks; the sum of the ranks' weights."""
    epoch: int
    """From 0."""
    consumed: int
    """Samples consumed after this step, over the whole run and all ranks: the cursor of the next step."""


class Loader:
    """Cuts a part into global batches, and those into the ranks' shards.

    A batch does not cross epochs: the last one of an epoch may be smaller. The concatenation of the ranks'
    shards, in rank order, is the batch in order, at any world size.
    """

    def __init__(
        self,
        part: Part,
        *,
        global_batch_size: int,
        seed: int,
        transform: Transform | None = None,
        shuffle: bool = True,
    ):
        assert part.num_samples > 0
        assert global_batch_size > 0
        self.num_samples = part.num_samples
        self.steps_per_epoch = -(-part.num_samples // global_batch_size)
        self._part = part
        self._global_batch_size = global_batch_size
        self._seed = seed
        self._transform = transform
        self._order = SampleOrder(part.num_samples, seed, part.blocks, shuffle)

    def shard(self, consumed: int, rank: int, world_size: int) -> Shard:
        """The share of `rank` in the batch that begins after `consumed` samples. A pure function."""
        epoch, start = divmod(consumed, self.num_samples)
        size = min(self._global_batch_size, self.num_samples - start)
        low, high = start + _cut(size, rank, world_size), start + _cut(size, rank + 1, world_size)
        is_filler = low == high
        low, high = (start, start + 1) if is_filler else (low, high)
        positions = self._order.positions(epoch, low, high)
        return self._made(positions, is_filler, size, epoch, consumed + size)

    def iterate(
        self, consumed: int, rank: int, world_size: int, *, stop_after: int | None = None
    ) -> Generator[Shard]:
        """Shards from `consumed` on, epoch after epoch, four of them made ahead in a thread.

        Ends after `stop_after` shards if given, else never; `close()` it then. A DataError of the reading
        thread is raised here.
        """
        return prefetched(self._shards(consumed, rank, world_size, stop_after), PREFETCHED_SHARDS)

    def once(self, rank: int, world_size: int, batch_size: int) -> Iterator[Shard]:
        """Every sample once over all ranks, in the order of the part, for evaluation.

        Each rank walks its own stretch of the part in shards of up to `batch_size` samples (so that blocks
        in storage are read by one rank, or two); all ranks get the same number of shards. Transforms see
        epoch 0.
        """
        low, high = _cut(self.num_samples, rank, world_size), _cut(self.num_samples, rank + 1, world_size)
        longest = _cut(self.num_samples, 1, world_size)
        for offset in range(0, longest, batch_size):
            start, stop = min(low + offset, high), min(low + offset + batch_size, high)
            is_filler = start == stop
            # A filler repeats the rank's last sample (or the first of all): its block has just been read.
            positions = np.array([max(high - 1, 0)]) if is_filler else np.arange(start, stop)
            sizes = (
                min(batch_size, max(0, share - offset)) for share in _shares(self.num_samples, world_size)
            )
            yield self._made(positions, is_filler, sum(sizes), 0, 0)

    def _shards(self, consumed: int, rank: int, world_size: int, stop_after: int | None) -> Iterator[Shard]:
        for _ in itertools.count() if stop_after is None else range(stop_after):
            shard = self.shard(consumed, rank, world_size)
            consumed = shard.consumed
            yield shard

    def _made(
        self, positions: Positions, is_filler: bool, global_size: int, epoch: int, consumed: int
    ) -> Shard:
        arrays = self._part.fetch(positions)
        if self._transform is not None:
            arrays = self._transform(arrays, seed=self._seed, epoch=epoch, positions=positions)
        weights = np.full(len(positions), 0.0 if is_filler else 1.0, np.float32)
        return Shard(arrays.inputs, arrays.targets, weights, positions, global_size, epoch, consumed)


def _cut(size: int, rank: int, world_size: int) -> int:
    """Where the share of `rank` begins when `size` samples are cut evenly; the first ranks get one more."""
    return -(-size * rank // world_size)


def _shares(size: int, world_size: int) -> list[int]:
    return [_cut(size, rank + 1, world_size) - _cut(size, rank, world_size) for rank in range(world_size)]
