"""Arithmetic on amounts of resources by name, with the tolerance that parts of a CPU or GPU need."""

from __future__ import annotations

import math
from collections.abc import Mapping

Resources = Mapping[str, float]
"""For instance {"CPU": 1, "GPU": 0.5}; a name that is missing stands for 0."""

TOLERANCE = 1e-6
"""Ray counts in units of 1e-4."""


def plus(left: Resources, right: Resources, times: float = 1) -> dict[str, float]:
    """`left` + `times` x `right`, over the names of both."""
    found = dict(left)
    for key, amount in right.items():
        found[key] = found.get(key, 0.0) + times * amount
    return found


def num_fitting(bundle: Resources, available: Resources) -> int:
    """How many of `bundle`, which asks for something, fit into `available`; 0 where that is overdrawn."""
    fits = [available.get(key, 0.0) / amount for key, amount in bundle.items() if amount > 0]
    return max(0, math.floor(min(fits) + TOLERANCE))


def missing(bundle: Resources, available: Resources) -> dict[str, float]:
    """What `available` lacks for one `bundle`: positive amounts only."""
    lacking = {key: amount - available.get(key, 0.0) for key, amount in bundle.items() if amount > 0}
    return {key: amount for key, amount in lacking.items() if amount > TOLERANCE}
