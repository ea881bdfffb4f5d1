"""`Gate`: what is under way and what waits for one model version, on one gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from eagleray.serving.admission.deadline import Forecast
from eagleray.serving.admission.fair import FairQueue
from eagleray.serving.admission.refusal import Refusal, busy

if TYPE_CHECKING:
    from eagleray.serving.admission.limits import Account
    from eagleray.serving.admission.ticket import Ticket

_UNKNOWN_S = 0.5
"""To come again after, where nothing is known of how long requests take."""


class Gate:
    """Lets `window` requests through at a time, and keeps the others until it is their turn.

    The window is what the replicas can work on without waiting, twice over: what is sent is out of reach of
    the turns between keys, and what is not sent leaves a replica idle for a round trip.
    """

    __slots__ = ("_is_pumping", "_queue", "cost_under_way", "forecast", "max_queued", "name", "window")

    def __init__(self, name: str, *, window: int, max_queued: int, forecast: Forecast | None = None) -> None:
        self.name = name
        """For messages: model 'digits' version 2."""
        self.window = window
        """In units of a plain request."""
        self.max_queued = max_queued
        self.forecast = forecast or Forecast()
        self.cost_under_way = 0
        self._queue: FairQueue[Ticket] = FairQueue()
        self._is_pumping = False

    @property
    def num_queued(self) -> int:
        """What waits."""
        return len(self._queue)

    def refused(self, account: Account, left_s: float) -> Refusal | None:
        """Why a request of this key is better told at once: the queue is full, or it would come too late."""
        queue = self._queue
        if not self.cost_under_way and self.window > 0:
            return None  # whatever was foretold: nobody would ever see that it has become quicker
        if not len(queue) and self.cost_under_way < self.window:
            ahead = 0.0
        else:
            key, weight, priority = account.key_id, account.weight, account.priority
            if len(queue) >= self.max_queued:
                # Who has less waiting than his share gets in all the same, up to twice as many: one key that
                # sends without end keeps nobody out.
                own, part = queue.share(key, weight, priority)
                if len(queue) >= 2 * self.max_queued or own >= max(1.0, part * self.max_queued):
                    wait_s = self.forecast.answer_s(queue.ahead(key, weight, priority)) or _UNKNOWN_S
                    return busy(f"{self.name}: {len(queue)} requests wait already", wait_s)
            ahead = queue.ahead(key, weight, priority)
        answer_s = self.forecast.answer_s(ahead + self.cost_under_way)
        if answer_s <= left_s:
            return None
        return busy(
            f"{self.name}: an answer would take {answer_s:.3g} s, and the request waits {left_s:.3g} s",
            answer_s - left_s,
        )

    def enter(self, ticket: Ticket, on_turn: Callable[[Ticket], None]) -> bool:
        """Call `on_turn` when the request may be sent: now (True), or from a later `leave`.

        One that can no longer be answered in its time is not sent: it is ended with a refusal (504).
        """
        ticket.gate = self
        if not len(self._queue) and self.cost_under_way < self.window:
            self.cost_under_way += ticket.cost
            on_turn(ticket)
            return True
        account = ticket.account
        ticket.on_turn = on_turn
        ticket.entry = self._queue.push(ticket, account.key_id, account.weight, account.priority, ticket.cost)
        return False

    def leave(self, ticket: Ticket, now_s: float) -> None:
        """The request is answered, or waits no longer: the next ones have their turn."""
        ticket.gate = None
        entry, ticket.entry = ticket.entry, None
        if entry is not None:
            self._queue.cancel(entry)
            return
        self.cost_under_way -= ticket.cost
        if len(self._queue):
            self.pump(now_s)

    def pump(self, now_s: float) -> None:
        """Send what there is room for; to be called when the window has grown, too."""
        if (
            self._is_pumping
        ):  # what was sent has failed at once, and left: the loop below goes on with the next
            return
        self._is_pumping = True
        try:
            self._pump(now_s)
        finally:
            self._is_pumping = False

    def _pump(self, now_s: float) -> None:
        queue = self._queue
        while self.cost_under_way < self.window and (ticket := queue.pop()) is not None:
            ticket.entry = None
            # What the replica has already goes before it.
            if ticket.deadline_s <= now_s + self.forecast.answer_s(self.cost_under_way):
                ticket.gate = None
                queue.forgive(ticket.account.key_id, ticket.cost)
                waited_s = now_s - ticket.began_s
                ticket.end(
                    Refusal(504, f"{self.name}: the request waited {waited_s:.3g} s, and has no time left")
                )
                continue
            on_turn, ticket.on_turn = ticket.on_turn, None
            assert on_turn is not None
            self.cost_under_way += ticket.cost
            on_turn(ticket)
