"""What only the collector of circles would free."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def uncollected(kind: type) -> Iterator[Callable[[], int]]:
    """No collections meanwhile; yields how many objects of a kind there are that were made since."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield lambda: sum(isinstance(one, kind) for one in gc.get_objects(generation=0))
    finally:
        if was_enabled:
            gc.enable()
