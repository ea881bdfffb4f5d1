"""What one gateway sees of the demand for each application: what comes, and what waits before the replicas.

Replicas see what is sent to them alone. What waits here for its turn or for a first replica, and what is
turned away for want of room, the autoscaler is told by the gateways (`telling_ray260`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

EVERY_S = 1.0
"""Between two counts: shorter ones would show chance."""
_LAST_WORDS = 2
"""Counts without news that are told all the same: that nothing comes any more is news, too."""

Count = tuple[float, int]
"""When, in seconds since the epoch, and how many so far."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What is to be told of one application."""

    app: str
    time_s: float
    """Seconds since the epoch."""
    queued: int
    """Requests that wait on this gateway."""
    texts: int
    """Those of them that ask for text."""
    arrived: tuple[Count, Count]
    """Predictions asked for: by now, and about EVERY_S before that."""


@dataclass(eq=False)
class _Seen:
    """One application."""

    queued: int = 0
    texts: int = 0
    arrived: int = 0
    parked: int = 0
    parked_texts: int = 0
    is_wanted: bool = False
    before: Count = (0.0, 0)
    now: Count = (0.0, 0)
    told: tuple[int, int] = (0, 0)
    """What waited, as last told."""
    num_quiet: int = _LAST_WORDS

    @property
    def waiting(self) -> tuple[int, int]:
        """Requests, and those of them that ask for text."""
        number, texts = self.queued + self.parked, self.texts + self.parked_texts
        return max(number, int(self.is_wanted)), texts


@dataclass(eq=False)
class Demand:
    """For one event loop."""

    wall: Callable[[], float] = time.time
    look: Callable[[], None] = lambda: None
    """Called before anything is told: who owns queues says by `told` how they are."""
    is_urgent: asyncio.Event = field(default_factory=asyncio.Event)
    """Something has begun to wait where nothing did."""
    _apps: dict[str, _Seen] = field(default_factory=dict)

    def told(self, app: str, queued: int, arrived: int, *, texts: int = 0) -> None:
        """Said by the owner of an application's queue, as often as he likes: what is so now.

        Args:
            app: The application.
            queued: Requests that wait in the queue.
            arrived: Predictions asked for since it began, in all: let in, or turned away for want of room.
                Who is over the limits of a key, or sends what cannot be read, asks for no replica.
            texts: Those of `queued` that ask for text.
        """
        seen = self._of(app)
        seen.arrived, seen.texts = arrived, texts
        is_new = queued > 0 and not seen.waiting[0]
        seen.queued = queued
        if is_new:
            self.is_urgent.set()

    def parked(self, app: str, number: int, texts: int, *, is_wanted: bool) -> None:
        """So many wait for a first replica; `is_wanted`: or will come again as soon as there may be one."""
        seen = self._of(app)
        is_new = (number > 0 or is_wanted) and not seen.waiting[0]
        seen.parked, seen.parked_texts, seen.is_wanted = number, texts, is_wanted
        if is_new:
            self.is_urgent.set()

    def keep_only(self, apps: Collection[str]) -> None:
        """There are no others any more."""
        for app in self._apps.keys() - set(apps):
            del self._apps[app]

    def due(self) -> list[Statement]:
        """What is to be told now; to be asked every EVERY_S, and where it `is_urgent`."""
        self.is_urgent.clear()
        self.look()
        now_s = self.wall()
        return [found for app, seen in self._apps.items() if (found := _due(app, seen, now_s)) is not None]

    def _of(self, app: str) -> _Seen:
        seen = self._apps.get(app)
        if seen is None:
            now_s = self.wall()
            seen = self._apps[app] = _Seen(before=(now_s - EVERY_S, 0), now=(now_s - EVERY_S, 0))
        return seen


def _due(app: str, seen: _Seen, now_s: float) -> Statement | None:
    is_count_due = now_s - seen.now[0] >= EVERY_S - 1e-3
    if is_count_due:
        seen.before, seen.now = seen.now, (now_s, seen.arrived)
    has_begun = seen.waiting[0] > 0 and not seen.told[0]
    if not (is_count_due or has_begun):
        return None
    is_news = seen.waiting[0] > 0 or seen.waiting != seen.told or seen.before[1] != seen.now[1]
    seen.num_quiet = 0 if is_news else seen.num_quiet + 1
    if seen.num_quiet > _LAST_WORDS:
        return None
    seen.told = seen.waiting
    return Statement(app, now_s, *seen.waiting, (seen.before, seen.now))
