"""Counter-based random numbers: a value is a pure function of a key and an index, on every machine alike.

Nothing is drawn in sequence, so no rank, batch or restart can move the numbers of a sample. They are plain
64-bit arithmetic: a new numpy cannot change them, as its generators' streams may (NEP 19).

Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014), SplitMix64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def key(*numbers: int) -> int:
    """One 64-bit key from whole numbers; another order or another number gives another key."""
    state = 0
    for number in numbers:
        state = _mixed(state ^ ((number + 1) * _GOLDEN & _MASK))
    return state


def hashed(key: int | NDArray[np.uint64], index: NDArray[np.integer]) -> NDArray[np.uint64]:
    """64 random bits for each element of `key` (a number, or an array that broadcasts) and `index`.

    With one key, different indices never give the same bits: every step below is a bijection.
    """
    bits = index.astype(np.uint64) * np.uint64(_GOLDEN)
    bits = np.atleast_1d(bits + (np.uint64(key) if isinstance(key, int) else key))
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return bits


def uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) from random bits, same shape, float64."""
    return (bits >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)


def permutation(key: int, length: int) -> NDArray[np.int64]:
    """A random order [length] of 0..length-1, int64.

    The sort keys are all different, so that the result does not depend on the sort's algorithm.
    """
    return np.argsort(hashed(key, np.arange(length)))


def _mixed(bits: int) -> int:
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        bits = (bits ^ (bits >> shift)) * factor & _MASK
    return bits ^ (bits >> 31)
