"""When a full queue is likely to have room: from how fast answers come, or how long a start took."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

_RECENT_S = 10.0
_SLOW_S = 1.0
"""A first answer that took longer had a start in it."""
FIRST_START_S = 15.0
"""A guess for a model that was never started: a process, its imports, a node perhaps."""


@dataclass
class Waiting:
    """Requests under way to one application, as one ingress sees them. Times are monotonic, in seconds."""

    num_under_way: int = 0
    start_s: float = FIRST_START_S
    """How long the last first answer took that had a start in it."""
    _begun_s: float = 0.0
    """When the first of those under way began, after a time without any."""
    _ended_s: deque[float] = field(default_factory=lambda: deque(maxlen=256))
    """When answers came since then, the newest last."""

    def begin(self, now_s: float) -> None:
        """One more request is under way."""
        if self.num_under_way == 0:
            self._begun_s = now_s
            self._ended_s.clear()
        self.num_under_way += 1

    def end(self, now_s: float, *, is_answered: bool) -> None:
        """One is not any more."""
        self.num_under_way -= 1
        if not is_answered:
            return
        if not self._ended_s and now_s - self._begun_s > _SLOW_S:
            self.start_s = now_s - self._begun_s
        self._ended_s.append(now_s)

    def retry_after_s(self, now_s: float) -> float:
        """Seconds until what waits now has been worked off, or has begun to be; between 1 and 60."""
        recent = [ended_s for ended_s in self._ended_s if now_s - ended_s <= _RECENT_S]
        if recent:
            per_s = len(recent) / max(now_s - max(self._begun_s, now_s - _RECENT_S), 0.1)
            guess_s = self.num_under_way / per_s
        else:
            guess_s = self.start_s - (now_s - self._begun_s)
        return float(min(60, max(1, math.ceil(guess_s))))
