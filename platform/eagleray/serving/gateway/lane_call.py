"""`LaneCall`: one request to infer on the fast lane, from its head to its answer."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from eagleray.protocol import binary, fast, tensors
from eagleray.serving.gateway.lane_body import Filler, SlotBody, room_for, send_from
from eagleray.serving.gateway.lane_exchange import LaneExchange
from eagleray.serving.gateway.lane_places import Place, placed
from eagleray.serving.gateway.line import goes_by_serve, is_second_try, send
from eagleray.serving.gateway.link_answers import outputs_of
from eagleray.serving.ingress import coding, passage, v2
from eagleray.serving.ingress.call import OFF_LOOP_BYTES, check_ready, no_answer
from eagleray.serving.ingress.http import Response, announced_bytes
from eagleray.serving.link.answers import Answer

if TYPE_CHECKING:
    from eagleray.protocol.infer import InferRequest
    from eagleray.serving.gateway.lane import Lane, LaneFace


class LaneCall(LaneExchange):
    """A request to infer."""

    __slots__ = ("_body", "_kept", "_place", "_request", "_task")

    def __init__(
        self,
        lane: Lane,
        face: LaneFace,
        place: Place,
        headers: Mapping[str, str],
        *,
        keep_alive: bool,
    ) -> None:
        super().__init__(lane, face, place.route, place.target, headers, keep_alive=keep_alive)
        self._place = place
        self._body: SlotBody | None = None
        self._kept: Answer | None = None
        self._request: InferRequest | None = None
        self._task: asyncio.Task[Any] | None = None

    # What the connection does.

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

    # Its way.

    def _admitted(self) -> None:
        place, state = self._place, self._state
        if place.state is not state:  # others were before it, and meanwhile the routes have changed
            place = self._place = placed(state, place.path)
            self._route, self._target = place.route, place.target
            check_ready(place.target)

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
        self._wait(time.monotonic())
        self._watch.mark("decode")
        self._enter(passage.cost_of(request.inputs))

    def _begin(self) -> None:
        assert self._request is not None
        line = self._lane.transport.way(self._place.target)
        if line is not None:
            deadline_ms = max(1, round((self.until_s - time.monotonic()) * 1000))
            if self._body is None:
                self._sent = send(line.pool, self._request.inputs, deadline_ms, self._answered)
            else:
                header = self._headers[binary.HEADER]
                self._sent, self._body = send_from(
                    line, self._body, self._request, header, deadline_ms, self._answered
                )
            if self._sent is not None:
                self._line = line
                line.num_by_lane += 1
                return
        self._by_serve()

    def _answered(self, answer: Answer) -> None:
        line, sent, self._line, self._sent = self._line, self._sent, None, None
        assert line is not None
        assert self._ticket is not None
        if goes_by_serve(line, sent, answer):
            self._kept = answer
            self._by_serve(is_second=is_second_try(sent, answer))
            return
        if (gate := self._ticket.gate) is not None:
            gate.answered(self._ticket, time.monotonic(), answer.timings)
        self._guarded(self._take, answer)

    def _take(self, answer: Answer) -> None:
        is_kept = False
        self._watch.mark_replica(answer.timings)
        try:
            is_kept = self._encode(outputs_of(self._place.target, answer), answer)
        except TimeoutError:
            raise no_answer(self._place.target, self._wait_s) from None
        finally:
            if not is_kept:
                answer.release()

    def _by_serve(self, *, is_second: bool = False) -> None:
        """Have Serve's handles carry it, which takes a Task."""
        assert self._request is not None
        assert self._ticket is not None
        self._ticket.foretold_s = 0.0  # that was for a link, and it may wait for a start now
        inputs = self._request.inputs
        if self._body is not None or (self._kept is not None and self._kept.slot is not None):
            # Threads of Serve's, or another link's socket, may read them when the call is over.
            inputs = {name: array.copy() for name, array in inputs.items()}
            self._release_slot()
        left_s = max(0.0, self.until_s - time.monotonic())
        target, ticket = self._place.target, self._ticket
        work = self._lane.transport.by_serve(target, inputs, left_s, ticket, is_second=is_second)
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
            return
        assert self._ticket is not None
        self._ticket.answered(time.monotonic())
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
            if self._is_over or future.cancelled():
                return
            # Not raised here: with this frame in its traceback it would be a circle, which keeps the body.
            error = future.exception()
            if error is None:
                self._guarded(take, future.result())
            elif isinstance(error, Exception):
                self._cancel()
                self._fail(error)
            else:
                raise error

        self._lane.loop.run_in_executor(None, work, *arguments).add_done_callback(done)  # type: ignore[arg-type]

    # Its end.

    def _cancel(self) -> None:
        super()._cancel()
        if self._task is not None:
            self._task.cancel()

    def _leave(self) -> None:
        super()._leave()
        self._request = None
        self._release_slot()

    def _release_slot(self) -> None:
        if self._kept is not None:
            self._kept.release()
        if self._body is not None:
            self._body.slot.release()
            self._body = None
