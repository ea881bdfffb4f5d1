"""`Parking`: requests to applications without a replica, until the first one is there, or does not come up.

Bounded by their number, by their bytes on this gateway, and by their time. Of places and of bytes each key
has its share by weight within priorities, as before a replica that is busy (`FairQueue`): who sends without
end keeps nobody out. Who has to go is told how long a start takes, less what of it has passed; and is counted
among those who want one, as he will come again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from eagleray.errors import ServiceError
from eagleray.protocol.key_terms import Priority
from eagleray.protocol.tensors import Array
from eagleray.serving.admission.fair import FairQueue
from eagleray.serving.admission.refusal import RETRY_AT_MOST_S
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.gateway.demand import Demand
from eagleray.serving.routes import Target
from eagleray.serving.services import Trouble
from eagleray.serving.transport import Overloaded, what
from eagleray.serving.waiting import FIRST_START_S

MAX_BYTES = 256 * 2**20
"""Of bodies that wait on one gateway, where no setting says otherwise."""
_SLOW_S = 1.0
"""What took longer was a start, and no link to a replica that runs."""
_TO_TELL_S = 0.02
"""So much before its time is over a request is sent away, and told when to come again: whoever else has an
eye on its time would tell it less."""
_GRACE_S = 5.0
"""Who was told to come again may be so late, and finds the start still wanted."""


class _Waiting(NamedTuple):
    """One request."""

    future: asyncio.Future[str]
    """Told why there is no replica, or nothing: go on."""
    ticket: Ticket | None


@dataclass(eq=False)
class _Lot:
    """What waits for one application."""

    since_s: float
    """When the first of them came, and asked for a start."""
    queue: FairQueue[_Waiting] = field(default_factory=FairQueue[_Waiting])
    is_text: bool = False
    """Whether they ask for text."""
    wanted_until_s: float = 0.0
    """Until when those who were sent away are expected again."""
    failure: str = ""
    timer: asyncio.TimerHandle | None = None


class Parking:
    """For one event loop.

    Args:
        demand: Told what waits, so that a replica is started at once.
        max_bytes: Of the bodies of all that wait. Until half of that waits anybody gets in.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, demand: Demand, *, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        """Of all that wait."""
        self.num_gateways = 1
        """Each has its part of how many requests may wait for an application."""
        self._demand, self._clock = demand, clock
        self._lots: dict[str, _Lot] = {}
        self._bodies: FairQueue[None] = FairQueue()
        """Of all lots; each costs its bytes."""
        self._starts: dict[str, float] = {}

    def expect(self, starts: Mapping[str, float]) -> None:
        """So long each application took to start, in seconds; what was seen here since is better known."""
        for app, start_s in starts.items():
            self._starts.setdefault(app, start_s)

    async def wait(
        self,
        target: Target,
        num_bytes: int,
        left_s: float | None = None,
        *,
        ticket: Ticket | None = None,
    ) -> None:
        """Return when there is a way to the target, or none can be waited for here; cancelled, forget it.

        Args:
            target: Where the request is to go.
            num_bytes: Of its body.
            left_s: How long it can wait, until it is ended by others; None: until it is cancelled.
            ticket: The request's, with the key whose it is; None: nobody's.

        Raises:
            Overloaded: there is no room for it; or a start is known to take longer, or took longer.
            ServiceError: the replica cannot start.
        """
        lot = self._lots.get(target.app)
        if lot is None:
            lot = self._lots[target.app] = _Lot(self._clock())
        self._check(target, lot, num_bytes, left_s, ticket)
        with self._parked(target, lot, num_bytes, ticket) as future:
            try:
                async with asyncio.timeout(None if left_s is None else max(0.0, left_s - _TO_TELL_S)):
                    failure = await future
            except TimeoutError:
                raise self._sent_away(target, lot, "has had no replica for the request in its time") from None
        if failure:
            raise ServiceError(f"{what(target)} has no replica: {failure}")

    def release(self, app: str) -> list[Ticket]:
        """There is a way to it: what waits goes on, those with tickets in the order that is returned."""
        if (lot := self._lots.get(app)) is None:
            return []
        took_s = self._clock() - lot.since_s
        if took_s > _SLOW_S:
            self._starts[app] = took_s
        return self._empty(app, lot, "")

    def fail(self, app: str, trouble: Trouble) -> None:
        """A start has failed: where the next one would, too, nobody need wait for it."""
        if (lot := self._lots.get(app)) is not None:
            lot.failure = trouble.reason
            if trouble.is_final:
                self._empty(app, lot, trouble.reason)

    def keep_only(self, apps: Collection[str]) -> None:
        """There are no others any more."""
        for app in self._lots.keys() - set(apps):
            self.fail(app, Trouble(0, "it is not served any more", is_final=True))
        for app in self._starts.keys() - set(apps):
            del self._starts[app]

    def retry_after_s(self, app: str) -> float:
        """Seconds until its replica is likely to be there: between 1 and 60."""
        lot = self._lots.get(app)
        passed_s = 0.0 if lot is None else self._clock() - lot.since_s
        left_s = self._starts.get(app, FIRST_START_S) - passed_s
        # Of one that is overdue nothing is known: by so much again.
        return float(min(RETRY_AT_MOST_S, max(1, math.ceil(abs(left_s)))))

    def _check(
        self, target: Target, lot: _Lot, num_bytes: int, left_s: float | None, ticket: Ticket | None
    ) -> None:
        """Raises: Overloaded where the request cannot wait here."""
        key, known_s = _key(ticket), self._starts.get(target.app)
        if not lot.queue.has_room(*key, -(-target.max_queued // self.num_gateways)):
            number = len(lot.queue)
            raise self._sent_away(target, lot, f"has no replica yet, and {number} requests wait for it")
        if not self._bodies.has_room_for(num_bytes, *key, self.max_bytes // 2):
            full = f"{self.num_bytes} of {self.max_bytes} bytes of bodies wait on this gateway"
            share = "" if self.num_bytes + num_bytes > self.max_bytes else ", of which a key has its share"
            raise self._sent_away(target, lot, f"has no replica yet, and {full}{share}")
        if left_s is not None and known_s is not None:
            start_s = known_s - (self._clock() - lot.since_s)
            if start_s > left_s:
                late = f"its start takes {start_s:.3g} s, and the request waits {left_s:.3g} s"
                raise self._sent_away(target, lot, f"has no replica yet: {late}")

    def _sent_away(self, target: Target, lot: _Lot, why: str) -> Overloaded:
        """The error for who does not wait any longer, and will come again."""
        wait_s = self.retry_after_s(target.app)
        lot.wanted_until_s = self._clock() + wait_s + _GRACE_S
        self._tell(target.app, lot)
        if lot.timer is not None:
            lot.timer.cancel()
        lot.timer = asyncio.get_running_loop().call_later(
            wait_s + _GRACE_S, self._close_if_left, target.app, lot
        )
        failure = f" (its last start failed: {lot.failure})" if lot.failure else ""
        return Overloaded(f"{what(target)} {why}{failure}; try again in {wait_s:.0f} s", wait_s)

    @contextlib.contextmanager
    def _parked(
        self, target: Target, lot: _Lot, num_bytes: int, ticket: Ticket | None
    ) -> Iterator[asyncio.Future[str]]:
        """One more waits."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        key, cost = _key(ticket), 1 if ticket is None else ticket.cost
        place = lot.queue.push(_Waiting(future, ticket), *key, cost)
        body = self._bodies.push(None, *key, num_bytes)
        lot.is_text = target.card.is_generative
        self.num_bytes += num_bytes
        self._tell(target.app, lot)
        try:
            yield future
        finally:
            lot.queue.cancel(place)
            self._bodies.cancel(body)
            self.num_bytes -= num_bytes
            self._tell(target.app, lot)
            self._close_if_left(target.app, lot)

    def _tell(self, app: str, lot: _Lot) -> None:
        if self._lots.get(app) is lot:
            is_wanted = self._clock() < lot.wanted_until_s
            number = len(lot.queue)
            self._demand.parked(app, number, number if lot.is_text else 0, is_wanted=is_wanted)

    def _close_if_left(self, app: str, lot: _Lot) -> None:
        if not len(lot.queue) and self._clock() >= lot.wanted_until_s:
            self._empty(app, lot, "")

    def _empty(self, app: str, lot: _Lot, failure: str) -> list[Ticket]:
        """Nobody waits for it any more; those who do are told so, in their order: their tickets."""
        if lot.timer is not None:
            lot.timer.cancel()
        if self._lots.get(app) is lot:
            del self._lots[app]
            self._demand.parked(app, 0, 0, is_wanted=False)
        tickets: list[Ticket] = []
        while (waiting := lot.queue.pop()) is not None:
            if not waiting.future.done():
                waiting.future.set_result(failure)
                if waiting.ticket is not None:
                    tickets.append(waiting.ticket)
        return tickets


def _key(ticket: Ticket | None) -> tuple[str, int, Priority]:
    """Whose a request is, and what that one's share and priority are."""
    if ticket is None:
        return "", 1, "interactive"
    return ticket.account.key_id, ticket.account.weight, ticket.account.priority


def num_bytes(inputs: Mapping[str, Array]) -> int:
    """About as many as they take here."""
    return sum(
        4 * sum(map(len, array.flat)) if array.dtype.hasobject else array.nbytes for array in inputs.values()
    )
