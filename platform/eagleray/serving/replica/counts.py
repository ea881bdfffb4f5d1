"""What a replica has had to do: how much came and was computed, and how long that took."""

from __future__ import annotations

import math
from collections import deque

PERIOD_S = 3.0
_MOST = 2048


class Counts:
    """Written by one thread; may be read by another."""

    def __init__(self) -> None:
        self.requests = 0
        self.came = 0
        """Samples of them."""
        self.done = 0
        """Samples that were computed."""
        self.ended = 0
        """Requests, whatever became of them."""
        self._times: deque[tuple[float, float, float]] = deque(maxlen=_MOST)
        """When each of the last ended, how long that took, and how much of it was before its pass."""

    def arrived(self, size: int) -> None:
        """A request of so many samples came."""
        self.requests += 1
        self.came += size

    def computed(self, size: int, now_s: float, seconds: float, waited_s: float) -> None:
        """One was answered so long after it came."""
        self.ended += 1
        self.done += size
        self._times.append((now_s, seconds, waited_s))

    def late(self, now_s: float, seconds: float) -> None:
        """One was given up so long after it came: it had waited too long."""
        self.ended += 1
        self._times.append((now_s, seconds, seconds))

    def p95_s(self, now_s: float) -> tuple[float, float] | None:
        """What 95 of 100 requests of the last PERIOD_S took at most, and waited; None: there was none."""
        found = [
            (seconds, waited_s)
            for when_s, seconds, waited_s in self._times.copy()
            if when_s > now_s - PERIOD_S
        ]
        if not found:
            return None
        at = math.ceil(0.95 * len(found)) - 1
        times_s, waits_s = map(sorted, zip(*found, strict=True))
        return times_s[at], waits_s[at]
