"""How much comes to a service and how much it does, from what its replicas count; and peaks of late."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

FAST_S, SLOW_S = 3.0, 30.0
"""Of the two means."""
_JUMP = 4.0
"""Times the noise of chance: more than that above the fast mean is a step, which counts at once and whole."""
_NUM_BINS = 60


@dataclass(frozen=True)
class Count:
    """What one replica has counted: samples that came, or that it computed."""

    first_s: float
    """When it began, as far as is known, by the replica's clock."""
    first: float
    last_s: float
    last: float


@dataclass(frozen=True)
class Rates:
    """Samples per second, of all replicas."""

    fast: float = 0.0
    slow: float = 0.0
    time_s: float | None = None
    """As of when; None: nothing was reported yet."""
    known: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """By replica: when it last reported, what it had counted by then, and its rate between the last two."""
    is_moving: bool = False
    """Whether something was counted between the last two looks."""

    @property
    def most(self) -> float:
        """The larger mean: growth counts at once, its end after a while."""
        return max(self.fast, self.slow)

    def after(self, time_s: float, counts: Mapping[str, Count]) -> Rates:
        """As of now, with what the replicas last reported; those that are gone count nothing."""
        known = {replica: self._of(replica, count) for replica, count in counts.items()}
        total = sum(rate for _, _, rate in known.values())
        is_moving = any(known[replica][1] > self.known.get(replica, known[replica])[1] for replica in known)
        if self.time_s is None:
            return Rates(total, total, time_s, known) if known else self
        passed_s = max(0.0, time_s - self.time_s)
        fast = self.fast + (total - self.fast) * -math.expm1(-passed_s / FAST_S)
        if total > self.fast + _JUMP * math.sqrt(self.fast + 1.0):  # a report is of a second
            fast = total
        return Rates(
            fast=fast,
            slow=self.slow + (total - self.slow) * -math.expm1(-passed_s / SLOW_S),
            time_s=time_s,
            known=known,
            is_moving=is_moving,
        )

    def _of(self, replica: str, count: Count) -> tuple[float, float, float]:
        before_s, before, rate = self.known.get(replica, (count.first_s, count.first, 0.0))
        if count.last < before:  # it began anew
            return count.last_s, count.last, 0.0
        if count.last_s <= before_s:
            return before_s, before, rate
        return count.last_s, count.last, (count.last - before) / (count.last_s - before_s)


@dataclass(frozen=True)
class Peaks:
    """The largest value of the last `span_s` seconds, kept in bins."""

    span_s: float
    since_s: float | None = None
    """When the first value came."""
    bins: tuple[tuple[float, float], ...] = ()
    """When each began, and its largest value."""

    def after(self, time_s: float, value: float) -> Peaks:
        """With one more value."""
        width_s = self.span_s / _NUM_BINS
        kept = [one for one in self.bins if one[0] + width_s > time_s - self.span_s]
        if kept and time_s < kept[-1][0] + width_s:
            kept[-1] = (kept[-1][0], max(kept[-1][1], value))
        else:
            kept.append((time_s, value))
        since_s = time_s if self.since_s is None else self.since_s
        return replace(self, since_s=since_s, bins=tuple(kept))

    @property
    def most(self) -> float:
        """Only after the first value."""
        return max(value for _, value in self.bins)

    def is_whole(self, time_s: float) -> bool:
        """Whether the values reach back over all of the span."""
        return self.since_s is not None and time_s - self.since_s >= self.span_s
