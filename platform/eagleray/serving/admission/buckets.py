"""`Bucket`: a rate with a burst, on a clock that the caller reads."""

from __future__ import annotations

_SLACK = 1e-9
"""Of a float's rounding: who comes exactly when he may is not sent away."""


class Bucket:
    """Fills with `rate` a second up to `capacity`. In `t` seconds less than capacity + rate x t is taken.

    Its level may be below zero: what costs more than the bucket holds is let in when it is full, and what was
    not known when it was let in is taken afterwards; until that is filled up again nothing is.
    """

    __slots__ = ("_at_s", "_level", "capacity", "rate")

    def __init__(self, rate: float, capacity: float, now_s: float) -> None:
        self.rate = rate
        self.capacity = capacity
        self._level = capacity
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """What is in it."""
        passed_s = now_s - self._at_s
        if passed_s > 0.0:
            self._at_s = now_s
            level = self._level + passed_s * self.rate
            self._level = level if level < self.capacity else self.capacity
        return self._level

    def has(self, amount: float, now_s: float) -> bool:
        """Whether `amount` may be taken, or more than it holds where it is full."""
        needed = amount if amount < self.capacity else self.capacity
        return self.level(now_s) + _SLACK >= needed

    def take(self, amount: float) -> None:
        """Take it; nothing is checked."""
        self._level -= amount

    def give(self, amount: float) -> None:
        """Give back what was taken and not used."""
        self._level = min(self.capacity, self._level + amount)

    def wait_s(self, amount: float, now_s: float) -> float:
        """Until `has(amount)`, if nobody takes anything before."""
        missing = self.missing(amount, now_s)
        if missing <= 0.0:
            return 0.0
        return missing / self.rate if self.rate > 0.0 else float("inf")

    def missing(self, amount: float, now_s: float) -> float:
        """What has to come until `has(amount)`; 0 or less where nothing has."""
        return min(amount, self.capacity) - self.level(now_s)

    def change(self, rate: float, capacity: float, now_s: float) -> None:
        """Go on with another rate and capacity: nothing is added, and what no longer fits is lost."""
        self._level = min(self.level(now_s), capacity)
        self.rate = rate
        self.capacity = capacity
