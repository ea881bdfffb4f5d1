"""What a dataset is made of: parts that give samples by position, and those that lie in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from eagleray.specs import Signature

Positions = NDArray[np.int64]
Array = NDArray[Any]


@dataclass(frozen=True)
class Arrays:
    """Samples as the signature describes them; the batch [B] is the first dimension of both."""

    inputs: Array
    targets: Array


@dataclass(frozen=True)
class Blocks:
    """How a part lies in storage that is larger than memory: position order is block order."""

    sizes: Positions
    """Samples of each block [num_blocks], int64; one may have none."""
    window_samples: int
    """So many samples of consecutive blocks are held in memory at once."""


class Part(Protocol):
    """Samples 0..num_samples-1 of one part of the split."""

    @property
    def num_samples(self) -> int:
        """How many samples there are, at least 1."""
        ...

    @property
    def blocks(self) -> Blocks | None:
        """None where any position is cheap to fetch, because the part is in memory."""
        ...

    def fetch(self, positions: Positions) -> Arrays:
        """The samples at `positions` [B], in that order, in arrays of the caller's own."""
        ...


@dataclass(frozen=True)
class Dataset:
    """An open dataset; `validation` and `test` are None where the split gives them nothing."""

    signature: Signature
    digest: str
    """SHA-256 (hex) of the content and of what the spec makes of it: columns, windows, split, scale."""
    train: Part
    validation: Part | None
    test: Part | None


Finish = Callable[[Array, Array | None], Arrays]
"""From rows as they are kept in memory (inputs, targets) to a batch as the signature describes it."""


class ArrayPart:
    """Samples that lie in memory, one row each."""

    blocks = None

    def __init__(self, inputs: Array, targets: Array | None, finish: Finish):
        self.num_samples = len(inputs)
        self._inputs, self._targets, self._finish = inputs, targets, finish

    def fetch(self, positions: Positions) -> Arrays:
        """Copies of the rows at `positions`, finished."""
        targets = None if self._targets is None else self._targets[positions]
        return self._finish(self._inputs[positions], targets)


def as_they_are(inputs: Array, targets: Array | None) -> Arrays:
    """The `Finish` of rows that are kept as batches need them."""
    assert targets is not None
    return Arrays(inputs, targets)


class WindowPart:
    """Overlapping windows of one token buffer: inputs [B, T] and the tokens that follow [B, T], int64."""

    blocks = None

    def __init__(self, buffer: Array, starts: Positions, length: int):
        """`starts` [N]: the first token of each window; each takes `length` + 1 tokens of `buffer`."""
        self.num_samples = len(starts)
        self._starts = starts
        self._windows = sliding_window_view(buffer, length + 1)

    def fetch(self, positions: Positions) -> Arrays:
        """The windows at `positions`, and the same shifted by one."""
        window = self._windows[self._starts[positions]]
        return Arrays(window[:, :-1].astype(np.int64), window[:, 1:].astype(np.int64))
