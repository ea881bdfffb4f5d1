"""Python's collector of circular garbage, in the processes that requests go through."""

from __future__ import annotations

import gc

_NEW_OBJECTS = 2_000
"""Between two looks; Python's own 700 are there as soon as some dozens of requests are under way. Not many
more: objects are counted and not their bytes, and a model's own circles may have tensors in them."""


def collect_seldom() -> None:
    """To be called when a gateway or a replica has loaded what it needs, which no collection looks at again.

    What requests leave behind is no circle: they need no collection. Those that happen all the same, with all
    of Ray's and torch's modules in them, would hold up whatever is under way.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, 10, 10)
