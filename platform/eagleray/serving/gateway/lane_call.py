"""`LaneCall`: one request of the fast lane, from its head to its answer."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from eagleray.protocol import binary, fast, tensors
from eagleray.serving.admission import deadline
from eagleray.serving.admission.refusal import Refusal
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.gateway.lane_body import Filler, SlotBody, gather, room_for, send_in_place
from eagleray.serving.gateway.lane_places import Place, placed
from eagleray.serving.gateway.lane_words import head_of, read_headers
from eagleray.serving.gateway.link_transport import Line, goes_by_serve, outputs_of, send
from eagleray.serving.gateway.tracing import Watch
from eagleray.serving.ingress import coding, door, failures, headers, v2
from eagleray.serving.ingress.app import CLIENT_GONE
from eagleray.serving.ingress.call import OFF_LOOP_BYTES, check_ready, no_answer
from eagleray.serving.ingress.http import HttpError, Response, announced_bytes, json_response, too_large
from eagleray.serving.link.client import Answer
from eagleray.serving.link.frames import Kind
from eagleray.serving.link.retries import Request

if TYPE_CHECKING:
    from eagleray.protocol.infer import InferRequest
    from eagleray.serving.gateway.lane import Lane, LaneFace

_LARGE_BYTES = 16 * 1024


class LaneCall:
    """Stands where uvicorn's RequestResponseCycle does, of which connections know the first attributes.

    Exactly one of `_reply`, `give_up` ends it. Nothing of it raises into the parser or the link.
    """

    __slots__ = (
        *("disconnected", "keep_alive", "message_event", "more_body", "response_complete"),
        *("response_started", "until_s"),
        *("_face", "_headers", "_is_begun", "_is_over", "_is_sent", "_kept", "_lane", "_line", "_num_bytes"),
        *("_parts", "_place", "_raw_headers", "_request", "_request_id", "_revision", "_scope", "_sent"),
        *("_body", "_started_s", "_task", "_ticket", "_timer", "_wait_s", "_watch"),
    )

    def __init__(
        self,
        lane: Lane,
        face: LaneFace,
        place: Place,
        raw_headers: list[tuple[bytes, bytes]],
        *,
        keep_alive: bool,
    ) -> None:
        self.keep_alive = keep_alive
        self.response_started = self.response_complete = self.disconnected = False
        self.more_body = True
        self.message_event = self
        self.until_s = 0.0
        """When it is to be ended."""
        self._lane, self._face, self._place, self._raw_headers = lane, face, place, raw_headers
        self._scope: Any = face.scope
        """Of uvicorn, for the access log."""
        self._parts: list[bytes | bytearray] = []
        self._num_bytes = 0
        self._body: SlotBody | None = None
        self._is_begun = self._is_sent = self._is_over = False
        self._headers: Mapping[str, str] = {}
        self._ticket: Ticket | None = None
        self._wait_s = 0.0
        self._kept: Answer | None = None
        self._line: Line | None = None
        self._request: InferRequest | None = None
        self._sent: Request | None = None
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # What the connection does.

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
        self._headers = read_headers(self._raw_headers)
        self._request_id = headers.request_id(self._headers.get("x-request-id"))
        self._watch = Watch(self._headers.get("traceparent"))
        self._guarded(self._admit)

    def feed(self, body: bytes) -> None:
        """A part of the body."""
        self._num_bytes += len(body)
        gather(self._parts, body)
        if self._num_bytes > self._lane.app.state.limits.max_body_bytes:
            self._too_large()

    def filler(self) -> Filler | None:
        """What is to read the rest of the body, where that is large and there is a slot for it."""
        if not self._parts or self._is_over or not self.more_body or binary.HEADER not in self._headers:
            return None
        num_bytes = announced_bytes(self._headers)
        line = self._lane.transport.line(self._place.target.app)
        body = room_for(line, num_bytes, self._headers[binary.HEADER], num_bytes - self._num_bytes)
        if body is None:
            return None
        parts, self._parts = self._parts, []
        return Filler(self._face, self, body, parts)

    def fill(self, body: SlotBody) -> None:
        """The whole body is there."""
        self._body, self._num_bytes = body, body.length

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
            self._cancel()
            self._watch.mark("replica")
            self._fail(no_answer(self._place.target, self._wait_s))
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
        app, place = self._lane.app, self._place
        announced = announced_bytes(self._headers)
        ticket = door.admit(app.admission, app.state, self._headers, announced, place.target.name)
        self._ticket = ticket
        ticket.on_end = self._revoked
        self._watch.mark("admission")
        if place.state is not app.state:  # others were before it, and meanwhile the routes have changed
            place = self._place = placed(app.state, place.path)
            check_ready(place.target)
        if self._num_bytes > place.state.limits.max_body_bytes:
            self._too_large()
            return
        if not self.more_body:
            self._decode()
            return
        self.until_s = time.monotonic() + place.state.limits.timeout_s
        self._lane.wait(self)

    def _decode(self) -> None:
        self._is_sent = True
        parts, self._parts = self._parts, []
        body = self._body.view if self._body else parts[0] if len(parts) == 1 else b"".join(parts)
        header = self._headers.get(binary.HEADER)
        try:
            request = fast.read_request(body, header, quick_bytes=OFF_LOOP_BYTES)
        except binary.TakesLong:
            self._off_loop(self._send, fast.read_request, body, header)
            return
        self._send(request)

    def _send(self, request: InferRequest) -> None:
        target = self._place.target
        tensors.check(request.inputs, target.card.inputs)
        v2.check_wanted(request.outputs, target)
        self._request = request
        now_s = time.monotonic()
        timeout_s = self._wait_s = self._left_s(now_s)
        self.until_s = now_s + timeout_s
        self._lane.wait(self)
        if deadline.HEADER in self._headers:
            self._timer = self._lane.loop.call_later(timeout_s, self.expire)
        self._watch.mark("decode")
        line = self._lane.transport.way(target)
        if line is not None:
            deadline_ms = max(1, round(timeout_s * 1000))
            sent, body = None, self._body
            if body is not None:
                header = self._headers[binary.HEADER]
                sent = send_in_place(line, body, request, header, deadline_ms, self._answered)
                self._body = body if sent is None else None
            if sent is None:
                sent = send(line.pool, request.inputs, deadline_ms, self._answered)
            if sent is not None:
                line.waiting.begin(now_s)
                self._line, self._sent = line, sent
                return
        self._by_serve()

    def _answered(self, answer: Answer) -> None:
        line, sent, self._line, self._sent = self._line, self._sent, None, None
        assert line is not None
        line.waiting.end(time.monotonic(), is_answered=answer.kind == Kind.RESULT)
        if goes_by_serve(line, sent, answer):
            self._kept = answer
            self._by_serve()
            return
        self._guarded(self._take, answer)

    def _take(self, answer: Answer) -> None:
        is_kept = False
        self._watch.mark("replica")
        try:
            is_kept = self._encode(outputs_of(self._place.target, answer), answer)
        except TimeoutError:
            raise no_answer(self._place.target, self._wait_s) from None
        finally:
            if not is_kept:
                answer.release()

    def _by_serve(self) -> None:
        """Have Serve's handles carry it, which takes a Task."""
        assert self._request is not None
        left_s = max(0.0, self.until_s - time.monotonic())
        work = self._lane.transport.by_serve(self._place.target, self._request.inputs, left_s)
        self._task = self._lane.loop.create_task(work)
        self._task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[Any]) -> None:
        self._task = None
        if task.cancelled() or self._is_over:
            return
        self._watch.mark("replica")
        error = task.exception()
        if isinstance(error, TimeoutError):
            error = no_answer(self._place.target, self._wait_s)
        if isinstance(error, Exception):
            self._fail(error)
        else:
            self._guarded(self._encode, task.result())

    def _encode(self, outputs: dict[str, Any], answer: Answer | None = None) -> bool:
        """Write the answer; whether that reads `answer` still, in a thread."""
        assert self._request is not None
        target = self._place.target
        response = v2.response_of(target, self._request, outputs)
        if v2.num_slow(response, self._request) < v2.OFF_LOOP_VALUES:
            self._pack(v2.answer_of(response, self._request, target))
            return False
        self._off_loop(self._pack, v2.answer_of, response, self._request, target, then=answer)
        return True

    def _pack(self, response: Response) -> None:
        accept = self._headers.get("accept-encoding", "")
        if (name := coding.wanted(response.body, accept)) is None:
            self._succeed(response)
        elif len(response.body) <= coding.QUICK_BYTES:
            self._packed(response, name, coding.pack(response.body, name))
        else:
            self._off_loop(functools.partial(self._packed, response, name), coding.pack, response.body, name)

    def _packed(self, response: Response, name: str, body: bytes | None) -> None:
        if body is not None:
            response.take_packed(body, name)
        self._succeed(response)

    def _succeed(self, response: Response) -> None:
        assert self._ticket is not None
        response.headers.update(self._ticket.account.state(time.monotonic()))
        self._reply(response)

    def _off_loop(
        self,
        take: Callable[[Any], None],
        work: Callable[..., Any],
        *arguments: Any,
        then: Answer | None = None,
    ) -> None:
        """Have a thread do what takes long, and go on with what it gave; `then` is released."""

        def done(future: Future[Any]) -> None:
            if then is not None:
                then.release()
            if not (self._is_over or future.cancelled()):
                self._guarded(lambda: take(future.result()))

        self._lane.loop.run_in_executor(None, work, *arguments).add_done_callback(done)  # type: ignore[arg-type]

    # Its end.

    def _left_s(self, now_s: float) -> float:
        """How long its answer is waited for from now on."""
        if self._ticket is None or deadline.HEADER not in self._headers:
            return self._place.state.limits.timeout_s
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
            self._line.waiting.end(time.monotonic(), is_answered=False)
            self._line = self._sent = None
        if self._task is not None:
            self._task.cancel()

    def _fail(self, error: Exception) -> None:
        if self._is_over:
            return
        failure = failures.failure(error, self._request_id)
        response = json_response({"error": failure.message}, failure.status)
        response.headers.update(failure.headers)
        self._reply(response)

    def _reply(self, response: Response) -> None:
        """Write the answer, and let the next request begin."""
        face, body = self._face, response.body
        transport = face.transport
        if transport.is_closing():  # uvloop raises where a closed transport is written to
            self._end(CLIENT_GONE, 0)
            return
        response.headers |= {"x-request-id": self._request_id, **self._watch.headers()}
        head = head_of(response, face.server_state.default_headers, keep_alive=self.keep_alive)
        self.response_started = self.response_complete = True
        if len(body) < _LARGE_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        self._end(int(response.status), len(body))
        if not self.keep_alive:
            transport.close()
        face.on_response_complete()
        if face.flow.write_paused and not transport.is_closing():
            face.flow.pause_reading()

    def _end(self, status: int, num_sent: int) -> None:
        """Count it."""
        self._is_over = True
        self._parts = []
        self._request = None
        lane, app, now_s = self._lane, self._lane.app, time.monotonic()
        lane.leave(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._kept is not None:
            self._kept.release()
        if self._body is not None:
            self._body.slot.release()
            self._body = None
        if (ticket := self._ticket) is not None:
            announced = announced_bytes(self._headers)
            if self._num_bytes > announced:
                ticket.received(self._num_bytes - announced)
            ticket.sent(num_sent)
            ticket.close(now_s)
        app.end()
        lane.end(self._revision)
        app.count(
            request_id=self._request_id,
            watch=self._watch,
            scope=self._scope,
            route=self._place.route,
            target=self._place.target if ticket is not None else None,
            status=status,
            seconds=time.perf_counter() - self._started_s,
            received=self._num_bytes,
            sent=num_sent,
        )
