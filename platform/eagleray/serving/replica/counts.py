"""What a replica has had to do: how much came, and how long it took."""

from __future__ import annotations

import math
from collections import deque

PERIOD_S = 3.0
_MOST = 2048


class Counts:
    """Written by one thread; may be read by another."""

    def __init__(self) -> None:
        self.requests = 0
        self.samples = 0
        """Arrived so far."""
        self._times: deque[tuple[float, float]] = deque(maxlen=_MOST)
        """When each of the last was answered, and how long it took."""

    def arrived(self, size: int) -> None:
        """A request of so many samples came."""
        self.requests += 1
        self.samples += size

    def answered(self, now_s: float, seconds: float) -> None:
        """One was answered, or was too late to be, so long after it came."""
        self._times.append((now_s, seconds))

    def p95_s(self, now_s: float) -> float | None:
        """95 of 100 requests answered within PERIOD_S took less; None where none was."""
        found = sorted(seconds for when_s, seconds in self._times.copy() if when_s > now_s - PERIOD_S)
        return found[math.ceil(0.95 * len(found)) - 1] if found else None
