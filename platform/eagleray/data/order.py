"""In which order an epoch visits the samples: a pure function of (seed, epoch).

In memory it is one permutation of the whole part. Larger than memory it has two levels: the storage blocks
in a random order, cut into windows of a bounded number of samples, and a permutation within each window. A
reader that holds one window then reads each block once per epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eagleray.data.hashing import key, permutation
from eagleray.data.parts import Blocks, Positions

_WHOLE, _BLOCKS, _WINDOW = 1, 2, 3


@dataclass(frozen=True)
class _Epoch:
    """The upper level of one epoch."""

    number: int
    blocks: Positions
    """Block indices in the order of the epoch."""
    first_block: Positions
    """Of each window, an index into `blocks`; one more at the end."""
    first_sample: Positions
    """Of each window, in samples of the epoch; one more at the end."""


class SampleOrder:
    """The positions of a part in the order of each epoch. Safe to share between threads."""

    def __init__(self, num_samples: int, seed: int, blocks: Blocks | None = None, shuffle: bool = True):
        self.num_samples = num_samples
        self._seed = seed
        self._blocks = blocks
        self._shuffle = shuffle
        # Each cache is one tuple, replaced whole: another thread sees the old one or the new one.
        self._whole: tuple[int, Positions] | None = None
        self._epoch: _Epoch | None = None
        self._window: tuple[int, int, Positions] | None = None
        self._block_starts = None if blocks is None else np.cumsum(blocks.sizes) - blocks.sizes

    def positions(self, epoch: int, start: int, stop: int) -> Positions:
        """Positions [stop - start] (int64) that come at `start` up to `stop` of the epoch."""
        assert 0 <= start <= stop <= self.num_samples
        if not self._shuffle:
            return np.arange(start, stop)
        if self._blocks is None:
            return self._permuted(epoch)[start:stop].copy()
        upper = self._upper(epoch)
        first = int(np.searchsorted(upper.first_sample, start, side="right")) - 1
        last = int(np.searchsorted(upper.first_sample, stop, side="left"))
        pieces = []
        for window in range(first, last):
            offset = int(upper.first_sample[window])
            pieces.append(self._permuted_window(upper, window)[max(start - offset, 0) : stop - offset])
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def _permuted(self, epoch: int) -> Positions:
        cached = self._whole
        if cached is None or cached[0] != epoch:
            cached = (epoch, permutation(key(self._seed, epoch, _WHOLE), self.num_samples))
            self._whole = cached
        return cached[1]

    def _upper(self, epoch: int) -> _Epoch:
        cached = self._epoch
        if cached is None or cached.number != epoch:
            assert self._blocks is not None
            cached = _upper_level(key(self._seed, epoch, _BLOCKS), epoch, self._blocks)
            self._epoch = cached
        return cached

    def _permuted_window(self, upper: _Epoch, window: int) -> Positions:
        cached = self._window
        if cached is None or cached[:2] != (upper.number, window):
            cached = (upper.number, window, self._shuffled_window(upper, window))
            self._window = cached
        return cached[2]

    def _shuffled_window(self, upper: _Epoch, window: int) -> Positions:
        assert self._blocks is not None
        assert self._block_starts is not None
        blocks = upper.blocks[upper.first_block[window] : upper.first_block[window + 1]]
        sizes, starts = self._blocks.sizes[blocks], self._block_starts[blocks]
        # Rows 0, 1, 2, … of the window, each moved from where its block lies in the window to where it
        # lies in the part.
        rows = np.arange(sizes.sum()) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
        return rows[permutation(key(self._seed, upper.number, _WINDOW, window), len(rows))]


def _upper_level(block_key: int, epoch: int, blocks: Blocks) -> _Epoch:
    """Blocks in random order, cut greedily into windows of at most `window_samples` (or of one block)."""
    order = permutation(block_key, len(blocks.sizes))
    ends = np.cumsum(blocks.sizes[order])
    first_block, first_sample = [0], [0]
    while first_block[-1] < len(order):
        fitting = int(np.searchsorted(ends, first_sample[-1] + blocks.window_samples, side="right"))
        first_block.append(max(fitting, first_block[-1] + 1))
        first_sample.append(int(ends[first_block[-1] - 1]))
    return _Epoch(epoch, order, np.array(first_block), np.array(first_sample))
