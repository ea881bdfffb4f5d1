"""Which part of the split each sample falls into: a hash of its index, so that no rank matters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eagleray.data.hashing import hashed, key, uniform
from eagleray.data.parts import Positions
from eagleray.errors import DataError
from eagleray.specs.data import Split

PARTS = ("train", "validation", "test")
_SPLIT = 4


def assign(split: Split, seed: int, start: int, stop: int) -> NDArray[np.uint8]:
    """Index into `PARTS` of each of the samples `start` up to `stop`, uint8."""
    first_after = [split.train, split.train + split.validation]
    if split.test == 0:  # a sum of fractions may fall short of 1
        first_after[1] = 1.0
    if split.validation == split.test == 0:
        first_after[0] = 1.0
    values = uniform(hashed(key(seed, _SPLIT), np.arange(start, stop)))
    return np.searchsorted(first_after, values, side="right").astype(np.uint8)


def indices(split: Split, seed: int, num_samples: int, what: str) -> dict[str, Positions]:
    """Sample indices [N] of each part that is asked for, by its name.

    Raises: DataError if a part stays empty; `what` names the dataset there.
    """
    part_of = assign(split, seed, 0, num_samples)
    found = {name: np.flatnonzero(part_of == number) for number, name in enumerate(PARTS)}
    check_sizes(split, {name: len(rows) for name, rows in found.items()}, what)
    return {name: rows for name, rows in found.items() if len(rows)}


def check_sizes(split: Split, sizes: dict[str, int], what: str) -> None:
    """Raises: DataError if a part that the split asks for has no sample."""
    for name in PARTS:
        if getattr(split, name) > 0 and sizes[name] == 0:
            way_out = "raise it" if name == "train" else "set it to 0, or raise it"
            raise DataError(
                f"{what}: data.split.{name} = {getattr(split, name):g} of {sum(sizes.values())} samples "
                f"leaves none; {way_out}, give more data, or try another data.split_seed"
            )
