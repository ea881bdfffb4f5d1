"""A clock for what lives long: it never jumps."""

from __future__ import annotations

import time


class Clock:
    """Seconds since the epoch that never jump: the time at the start, and a monotonic clock on top of it."""

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def __call__(self) -> float:
        """The time now."""
        return self._offset_s + time.monotonic()
