"""`LaneExchange`: what all requests of the fast lane have in common, from their head to their end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from eagleray.serving.admission import deadline
from eagleray.serving.admission.refusal import Refusal
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.gateway.lane_body import gather
from eagleray.serving.gateway.lane_words import head_of
from eagleray.serving.gateway.line import Line
from eagleray.serving.gateway.tracing import Watch
from eagleray.serving.ingress import door, failures, passage
from eagleray.serving.ingress.app import CLIENT_GONE
from eagleray.serving.ingress.call import no_answer
from eagleray.serving.ingress.headers import request_id
from eagleray.serving.ingress.http import HttpError, Response, announced_bytes, too_large
from eagleray.serving.link.retries import Request
from eagleray.serving.routes import Target

if TYPE_CHECKING:
    from eagleray.serving.admission.gate import Gate
    from eagleray.serving.gateway.lane import Lane, LaneFace
    from eagleray.serving.state import IngressState

_LARGE_BYTES = 16 * 1024


class LaneExchange:
    """Stands where uvicorn's RequestResponseCycle does, of which connections know the first attributes.

    Exactly one of `_reply` (or what a subclass has in its place) and `give_up` ends it. Nothing of it raises
    into the parser or the link. Subclasses say what to do with the body (`_decode`).

    Args:
        lane: Whose it is.
        face: The connection.
        route: For the counters.
        target: Where it leads; None: that is not known before its body is.
        headers: Of the request, as `read_headers` gives them.
        keep_alive: Whether the connection is to live on.
    """

    __slots__ = (
        *("disconnected", "keep_alive", "more_body", "response_complete", "response_started", "until_s"),
        *("_announced", "_face", "_foretold", "_headers", "_is_begun", "_is_over", "_is_sent", "_lane"),
        *("_line", "_num_bytes", "_parts", "_request_id", "_revision", "_route", "_scope", "_sent"),
        *("_started_s", "_state", "_target", "_ticket", "_timer", "_wait_s", "_watch"),
    )

    def __init__(
        self,
        lane: Lane,
        face: LaneFace,
        route: str,
        target: Target | None,
        headers: Mapping[str, str],
        *,
        keep_alive: bool,
    ) -> None:
        self.keep_alive = keep_alive
        self.response_started = self.response_complete = self.disconnected = False
        self.more_body = True
        self.until_s = 0.0
        """When it is to be ended."""
        self._lane, self._face, self._headers = lane, face, headers
        self._route, self._target = route, target
        self._scope: Any = face.scope
        """Of uvicorn, for the access log."""
        self._parts: list[bytes | bytearray] = []
        self._num_bytes = self._announced = 0
        self._is_begun = self._is_sent = self._is_over = False
        self._foretold: Gate | None = None
        """Asked just now, when the request was let in."""
        self._ticket: Ticket | None = None
        self._wait_s = 0.0
        self._line: Line | None = None
        self._sent: Request | None = None
        self._timer: asyncio.TimerHandle | None = None

    # What the connection does.

    @property
    def message_event(self) -> LaneExchange:
        """Itself, for its method `set`; as an attribute it would be a circle, for the collector to free."""
        return self

    def set(self) -> None:
        """The connection's, which takes this for an event: the client is gone, or the body is here."""
        if self.disconnected:
            self.give_up()
        elif not self.more_body and self._is_begun and not self._is_over and not self._is_sent:
            self._guarded(self._decode)

    def start(self) -> None:
        """Those before it are answered: it begins."""
        self._is_begun = True
        self._started_s = time.perf_counter()
        self._lane.app.begin()
        self._revision = self._lane.begin()
        self._state: IngressState = self._lane.app.state
        self._request_id = request_id(self._headers.get("x-request-id"))
        self._watch = Watch(self._headers.get("traceparent"))
        self._guarded(self._admit)

    def feed(self, body: bytes) -> None:
        """A part of the body."""
        self._num_bytes += len(body)
        gather(self._parts, body)
        if self._num_bytes > self._lane.app.state.limits.max_body_bytes:
            self._too_large()

    @property
    def is_over(self) -> bool:
        """Whether it is answered, or given up."""
        return self._is_over

    def give_up(self) -> None:
        """Nobody waits for it."""
        if self._is_over or not self._is_begun:
            return
        self._cancel()
        self._end(CLIENT_GONE, 0)

    def listen(self) -> None:
        """Read on, though others wait behind it: a client that leaves is not seen otherwise."""
        self._face.read_on()

    def expire(self) -> None:
        """The lane's: its time is over."""
        if self._is_over:
            return
        if self._is_sent:
            assert self._target is not None
            self._cancel()
            self._watch.mark("replica")
            self._fail(passage.late(self._ticket) or no_answer(self._target, self._wait_s))
        else:
            timeout_s = self._lane.app.state.limits.timeout_s
            self._fail(HttpError(408, f"the body was not there within {timeout_s:g} s"))

    # Its way.

    def _guarded(self, step: Callable[..., object], *arguments: Any) -> None:
        try:
            step(*arguments)
        except Exception as error:
            self._cancel()
            self._fail(error)

    def _admit(self) -> None:
        app = self._lane.app
        announced = self._announced = announced_bytes(self._headers)
        model, gate = None, None
        if (target := self._target) is not None:
            model = target.name
            if not target.cache_bytes:  # else its answer may be there, and nobody has to be asked
                gate = self._lane.transport.gate(target)
        ticket = door.admit(app.admission, app.state, self._headers, announced, model, gate=gate)
        self._ticket = ticket
        ticket.on_end = self._revoked
        self._watch.mark("admission")
        self._foretold = None if self.more_body else gate
        self._admitted()
        limits = self._state.limits
        if self._num_bytes > limits.max_body_bytes:
            self._too_large()
            return
        if not self.more_body:
            self._decode()
            return
        self.until_s = time.monotonic() + limits.timeout_s
        self._lane.wait(self)

    def _admitted(self) -> None:
        """It is let in, and its body may not be there yet. Raises: why it is not to go on."""

    def _decode(self) -> None:
        """The body is there."""
        raise NotImplementedError

    def _enter(self, cost: int) -> None:
        """Call `_begin` when it is its turn; what it costs is as for `passage.enter`. Raises: as that."""
        ticket, gate = self._ticket, self._foretold
        assert ticket is not None
        ticket.cost = cost
        if gate is not None and gate.enter_at_once(ticket):
            self._begin()
            return
        assert self._target is not None
        foretold, gate = gate, self._lane.transport.gate(self._target)
        passage.enter(gate, ticket, cost, self._on_turn, is_foretold=foretold is gate)

    def _on_turn(self, ticket: Ticket) -> None:
        if ticket.sent_s:
            self._watch.mark("queue")
        self._guarded(self._begin)

    def _begin(self) -> None:
        """It is its turn to be sent."""
        raise NotImplementedError

    def _wait(self, now_s: float) -> float:
        """Be ended where no answer comes; how long that is from now, in seconds."""
        timeout_s = self._wait_s = self._left_s(now_s)
        self.until_s = now_s + timeout_s
        assert self._ticket is not None
        self._ticket.deadline_s = self.until_s  # however long its body took to come
        self._lane.wait(self)
        if deadline.HEADER in self._headers:
            self._timer = self._lane.loop.call_later(timeout_s, self.expire)
        return timeout_s

    # Its end.

    def _left_s(self, now_s: float) -> float:
        """How long its answer is waited for from now on."""
        if self._ticket is None or deadline.HEADER not in self._headers:
            return self._state.limits.timeout_s
        return max(0.0, self._ticket.deadline_s - now_s)

    def _too_large(self) -> None:
        self._parts = []
        if self._is_begun:  # else it is told when its turn comes
            limit_bytes = self._lane.app.state.limits.max_body_bytes
            self._fail(too_large(limit_bytes, f"{self._num_bytes} came and it went on"))

    def _revoked(self, refusal: Refusal) -> None:
        """The admission's: it is to end before its answer."""
        if not self._is_over:
            self._cancel()
            self._fail(door.refused(refusal))

    def _cancel(self) -> None:
        """Let nobody work on it any more."""
        if self._sent is not None and self._line is not None:
            self._sent.cancel()
            self._line = self._sent = None

    def _fail(self, error: Exception) -> None:
        if self._is_over:
            return
        self._reply(failures.response(failures.failure(error, self._request_id), self._scope["path"]))

    def _reply(self, response: Response) -> None:
        """Write the answer, and let the next request begin."""
        face, body = self._face, response.body
        transport = face.transport
        if transport.is_closing():  # uvloop raises where a closed transport is written to
            self._end(CLIENT_GONE, 0)
            return
        response.headers |= {"x-request-id": self._request_id, **self._watch.headers()}
        head = head_of(response, face.server_state.default_headers, keep_alive=self.keep_alive)
        self.response_started = True
        if len(body) < _LARGE_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        self._finish(int(response.status), len(body))

    def _finish(self, status: int, num_sent: int) -> None:
        """All of the answer is written."""
        face, transport = self._face, self._face.transport
        self.response_complete = True
        self._end(status, num_sent)
        if not (self.keep_alive or self.more_body):  # else the face closes behind the body
            transport.close()
        face.on_response_complete()
        if face.flow.write_paused and not transport.is_closing():
            face.flow.pause_reading()

    def _end(self, status: int, num_sent: int) -> None:
        """Count it."""
        now_s = time.monotonic()
        self._leave()
        if (ticket := self._ticket) is not None:
            if self._num_bytes > self._announced:
                ticket.received(self._num_bytes - self._announced)
            ticket.sent(num_sent)
            ticket.close(now_s)
        self._lane.app.count(
            request_id=self._request_id,
            watch=self._watch,
            scope=self._scope,
            route=self._route,
            target=self._target if ticket is not None else None,
            status=status,
            seconds=time.perf_counter() - self._started_s,
            received=self._num_bytes,
            sent=num_sent,
        )

    def _leave(self) -> None:
        """It is no longer the lane's."""
        self._is_over = True
        self._parts = []
        lane = self._lane
        lane.leave(self)
        if self._timer is not None:
            self._timer.cancel()
        lane.app.end()
        lane.end(self._revision)
