"""`Gate`: what is under way and what waits for one model version, on one gateway."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from eagleray.serving.admission.deadline import Forecast, Foretells
from eagleray.serving.admission.fair import FairQueue
from eagleray.serving.admission.refusal import Refusal, busy
from eagleray.serving.admission.window import OPEN, Window

if TYPE_CHECKING:
    from eagleray.serving.admission.limits import Account
    from eagleray.serving.admission.ticket import Ticket

_UNKNOWN_S = 0.5
"""To come again after, where nothing is known of how long requests take."""
_NEVER_S = math.inf
_OF_IDLE = 16
"""While nothing waits one answer in so many is learned from: that costs more than all the rest."""


class Took(Protocol):
    """What the time of an answered request was spent on, as its replica tells it."""

    @property
    def queue_us(self) -> int:
        """Until the model was free for it."""
        ...

    @property
    def infer_us(self) -> int:
        """In its batch."""
        ...

    @property
    def batch_size(self) -> int:
        """Samples of that."""
        ...


class Gate:
    """Lets `window` requests through at a time, and keeps the others until it is their turn.

    The window is what the replicas can work on without waiting, twice over: what is sent is out of reach of
    the turns between keys, and what is not sent leaves a replica idle for a round trip.
    """

    __slots__ = (
        "_is_pumping", "_num_unseen", "_queue", "_sized_s", "_sizing", "cost_under_way", "forecast",
        "max_queued", "name", "num_entered", "num_refused", "on_waiting", "window",
    )  # fmt: skip

    def __init__(
        self, name: str, *, window: int = OPEN, max_queued: int, forecast: Foretells | None = None
    ) -> None:
        self.name = name
        """For messages: model 'digits' version 2."""
        self.window = window
        """In units of a plain request."""
        self.max_queued = max_queued
        self.forecast: Foretells = forecast or Forecast()
        self.cost_under_way = 0
        self.num_entered = self.num_refused = 0
        """Requests so far: what was asked for is the sum."""
        self.on_waiting: Callable[[], None] | None = None
        """Called when a request begins to wait where none did."""
        self._queue: FairQueue[Ticket] = FairQueue()
        self._sizing = Window()
        self._sized_s = _NEVER_S if window == OPEN else 0.0
        """Since when there are replicas. What was sent before waited for one, which says nothing of them."""
        self._is_pumping = False
        self._num_unseen = _OF_IDLE
        """Answers since the last one that was learned from."""

    @property
    def num_queued(self) -> int:
        """What waits."""
        return len(self._queue)

    def arrange(self, max_ongoing: Sequence[int], num_gateways: int, now_s: float) -> None:
        """These replicas run now, each with the requests that it takes at a time, for so many gateways.

        Without a replica nothing waits here, so that whoever starts one knows of the requests.
        """
        self._sizing.arrange(max_ongoing, num_gateways)
        self._resize(now_s)

    def open(self, now_s: float) -> None:
        """Let everything through from now on: nobody will say any more which replicas there are."""
        self.arrange((), 1, now_s)

    def refused(self, account: Account, left_s: float) -> Refusal | None:
        """Why a request of this key is better told at once: the queue is full, or it would come too late."""
        queue = self._queue
        if not self.cost_under_way and self.window > 0:
            return None  # whatever was foretold: nobody would ever see that it has become quicker
        forecast = self.forecast
        if not queue.length and self.cost_under_way < self.window:
            ahead = 0.0
        else:
            key, weight, priority = account.key_id, account.weight, account.priority
            ahead = queue.ahead(key, weight, priority)
            if not queue.has_room(key, weight, priority, self.max_queued):
                self._count_refused()
                wait_s = forecast.plain_s(ahead) * forecast.stretch or _UNKNOWN_S
                return busy(
                    f"{self.name} has {len(queue)} requests waiting, which is all it takes; try again",
                    wait_s,
                )
        answer_s = forecast.plain_s(ahead + self.cost_under_way) * forecast.stretch
        if answer_s <= left_s:
            return None
        self._count_refused()
        return busy(
            f"{self.name}: an answer would take {answer_s:.3g} s, and the request waits {left_s:.3g} s",
            answer_s - left_s,
        )

    def enter(self, ticket: Ticket, on_turn: Callable[[Ticket], None]) -> bool:
        """Call `on_turn` when the request may be sent: now (True), or from a later `leave`.

        One that can no longer be answered in its time is not sent: it is ended with a refusal (504).
        """
        if self.enter_at_once(ticket):
            on_turn(ticket)
            return True
        ticket.gate = self
        self.num_entered += 1
        ticket.on_turn = on_turn
        self._push(ticket)
        if self.on_waiting is not None and len(self._queue) == 1:
            self.on_waiting()
        return False

    def enter_at_once(self, ticket: Ticket) -> bool:
        """Whether it is the request's turn as it comes; it is under way then. That is the usual way."""
        if self.cost_under_way >= self.window or self._queue.length:
            return False
        ticket.gate = self
        self.num_entered += 1
        self.cost_under_way += ticket.cost
        return True

    def again(self, tickets: Iterable[Ticket], now_s: float) -> None:
        """Those that were sent while there was no replica wait for their turns among all (`Ticket.on_turn`).

        Where there is room for them as they are none waits: a ticket without an `entry` has its turn.
        """
        if self.cost_under_way <= self.window:
            return
        for ticket in tickets:
            if ticket.gate is self and ticket.entry is None and ticket.on_turn is not None:
                self.cost_under_way -= ticket.cost
                self._push(ticket)
        self.pump(now_s)
        if self._queue.length and self.on_waiting is not None:
            self.on_waiting()

    def observe(self, took: Took, now_s: float) -> None:
        """A replica has said what its time went to."""
        self._num_unseen = 0
        pass_s = took.infer_us * 1e-6
        self.forecast.observe(pass_s, took.batch_size)
        is_wanted = self._queue.length > 0
        if is_wanted or self._sizing.is_borrowed:
            waited_s = took.queue_us * 1e-6
            self._sizing.observe(waited_s, pass_s, took.batch_size, is_wanted=is_wanted)
            if self._sizing.size != self.window:
                self._resize(now_s)
        if not self._queue.length:
            self.forecast.relax()

    def observe_whole(self, seconds: float) -> None:
        """A request took so long, of which no more is known: all that was under way was one batch."""
        self.forecast.observe(seconds, max(1.0, self.cost_under_way / max(1.0, self._sizing.own_replicas)))
        if not self._queue.length:
            self.forecast.relax()

    def answered(self, ticket: Ticket, now_s: float, took: Took | None = None) -> None:
        """As `leave`, of one that has its answer: what was foretold is compared with what it took.

        `took`: as for `observe`, where nobody has told that yet.
        """
        if ticket.foretold_s > 0.0 and ticket.sent_s >= self._sized_s:
            self.forecast.correct(now_s - ticket.sent_s, ticket.foretold_s)
        if took is not None:
            self._num_unseen += 1
            if self._queue.length or self._num_unseen >= _OF_IDLE:
                self.observe(took, now_s)
        if ticket.entry is not None:  # nobody is answered who waits; were it so, he waits no longer
            self.leave(ticket, now_s)
            return
        ticket.gate = None
        self.cost_under_way -= ticket.cost
        if self._queue.length:
            self.pump(now_s)

    def text_ended(self, ticket: Ticket, now_s: float) -> None:
        """As `leave`, of one that has its whole text."""
        sent_s = ticket.turn_s or ticket.sent_s or ticket.began_s
        if sent_s >= self._sized_s:
            self.forecast.observe_text(now_s - sent_s)
        self.leave(ticket, now_s)

    def leave(self, ticket: Ticket, now_s: float) -> None:
        """The request is answered, or waits no longer: the next ones have their turn."""
        ticket.gate = None
        entry, ticket.entry = ticket.entry, None
        if entry is not None:
            self._queue.cancel(entry)
            return
        self.cost_under_way -= ticket.cost
        if self._queue.length:
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

    def too_late(self, ticket: Ticket, now_s: float) -> Refusal:
        """The request's time is over, and it waits here still, or would be answered too late."""
        waited_s = now_s - ticket.began_s
        return Refusal(504, f"{self.name}: the request waited {waited_s:.3g} s, and has no time left")

    def _push(self, ticket: Ticket) -> None:
        account = ticket.account
        ticket.entry = self._queue.push(ticket, account.key_id, account.weight, account.priority, ticket.cost)

    def _count_refused(self) -> None:
        self.num_refused += 1
        self._num_unseen = _OF_IDLE  # where many are refused each answer has to show whether that is right

    def _resize(self, now_s: float) -> None:
        sizing = self._sizing
        before, self.window = self.window, sizing.size
        if self.window == OPEN:
            self._sized_s = _NEVER_S
        elif before == OPEN:
            self._sized_s = now_s
        if sizing.replicas:
            self.forecast.arrange(sizing.own_replicas, self.window)
        if self.window > before and len(self._queue):
            self.pump(now_s)

    def _pump(self, now_s: float) -> None:
        queue = self._queue
        while self.cost_under_way < self.window and (ticket := queue.pop()) is not None:
            ticket.entry = None
            # What the replica has already goes before it. Without one it waits for a start, of which the
            # times of batches say nothing.
            foretold_s = self.forecast.plain_s(self.cost_under_way) if self.window < OPEN else 0.0
            if ticket.deadline_s <= now_s + foretold_s * self.forecast.stretch:
                ticket.gate = None
                queue.forgive(ticket.account.key_id, ticket.cost)
                ticket.end(self.too_late(ticket, now_s))
                continue
            on_turn, ticket.on_turn = ticket.on_turn, None
            assert on_turn is not None
            ticket.sent_s, ticket.foretold_s = now_s, foretold_s
            self.cost_under_way += ticket.cost
            on_turn(ticket)
