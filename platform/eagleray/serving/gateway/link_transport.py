"""`LinkTransport`: requests go to replicas over links, and by Serve's handles where there is no link."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from eagleray.errors import InputError
from eagleray.protocol.generation import GenerationChunk, GenerationRequest
from eagleray.serving import transport
from eagleray.serving.admission.deadline import Forecast, TextForecast
from eagleray.serving.admission.gate import Gate
from eagleray.serving.gateway.lookup_ray260 import Lookup, OnChange, Running, Watcher
from eagleray.serving.link import generating, tensors
from eagleray.serving.link.client import Answer, OnAnswer
from eagleray.serving.link.frames import TOO_LARGE, FrameError, Kind
from eagleray.serving.link.pool import Pool
from eagleray.serving.link.retries import Request
from eagleray.serving.link.ring import MIN_RING_BYTES, RingOptions
from eagleray.serving.routes import Target
from eagleray.serving.transport import BadInput, Overloaded, Transport

Arrays = Mapping[str, np.ndarray]
RING = RingOptions(slots=16, slot_bytes=4 << 20)
_log = logging.getLogger(__name__)


class Fallback(Transport, Protocol):
    """As `ServeTransport`."""

    def expect(self, starts: Mapping[str, float]) -> None:
        """How long each application took to start."""
        ...

    def keep_only(self, apps: Collection[str]) -> None:
        """There are no others any more."""
        ...


@dataclass(eq=False)
class Line:
    """The way to one application."""

    app: str
    pool: Pool
    max_ongoing: Sequence[int] = ()
    """Requests that each replica takes at a time."""
    gate: Gate | None = None
    """Where requests wait for their turn, from the first one on."""
    target: Target | None = None
    """As it was when the gate was last asked for."""
    detour: str = ""
    """Why requests go by Serve's handles; empty where they do not."""

    @property
    def num_running(self) -> int:
        """Replicas."""
        return len(self.max_ongoing)

    def say(self, detour: str) -> None:
        """Log where requests go, once for each change."""
        if detour == self.detour:
            return
        self.detour = detour
        if detour:
            _log.warning("requests to %s go by Serve's handles, more slowly: %s", self.app, detour)
        else:
            _log.warning("requests to %s go over links again", self.app)

    def why_none(self) -> str:
        """Why there is no link to choose."""
        if not self.num_running:
            return "it has no replica now"
        problems = self.pool.problems()
        return next(iter(problems.values()), "") or "no link to its replicas is ready yet"


class LinkTransport:
    """A Transport. For one event loop.

    Args:
        serve: Takes what no link can: the first request of an application that is scaled to zero, say.
        node: This process's node, as Ray knows it.
        ring: Shared memory for each link on this node.
        look_up: Tells which replicas an application has.
    """

    def __init__(
        self,
        serve: Fallback,
        *,
        node: str,
        ring: RingOptions | None = RING,
        look_up: Callable[[OnChange], Watcher] = Lookup,
    ) -> None:
        self._serve, self._node, self._ring = serve, node, ring
        self._links: Mapping[str, Any] = {}
        self._lines: dict[str, Line] = {}
        self._num_gateways = 1
        self._lookup = look_up(self.update)
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def has_links(self) -> bool:
        """Whether any application can be reached by link."""
        return any(line.pool.links for line in self._lines.values())

    def line(self, app: str) -> Line | None:
        """The way to an application; None where it is not known."""
        return self._lines.get(app)

    @property
    def gates(self) -> Mapping[str, Gate]:
        """By application, of those that were asked something."""
        return {app: line.gate for app, line in self._lines.items() if line.gate is not None}

    def gate(self, target: Target) -> Gate | None:
        """Where requests to it wait; None where its application is not known."""
        line = self._lines.get(target.app)
        if line is None:
            return None
        if line.target is not target or line.gate is None:
            self._name_gate(line, target)
        return line.gate

    def share(self, num_gateways: int) -> None:
        """So many gateways ask the same replicas: each may have its part of what they can work on."""
        if num_gateways == self._num_gateways:
            return
        self._num_gateways = max(1, num_gateways)
        for line in self._lines.values():
            line.target = None  # of what may wait each has a part, too
            self._arrange(line)

    def follow(self, links: Mapping[str, Any], apps: Collection[str]) -> None:
        """Have links to the replicas of these applications, and of no others.

        `links`: as `Controller.links`; nothing where there can be none.
        """
        if links != self._links:
            self._drop(list(self._lines))
            self._links = links
        self._drop([app for app in self._lines if app not in apps])
        self._serve.keep_only(apps)
        if links:
            for app in set(apps) - self._lines.keys():
                self._lines[app] = self._opened(app)
        self._lookup.follow(self._lines)

    def expect(self, starts: Mapping[str, float]) -> None:
        """Take down how long each application took to start: what a full queue is told at first."""
        self._serve.expect(starts)

    def update(self, app: str, replicas: Sequence[Running]) -> None:
        """These replicas of an application run now."""
        if (line := self._lines.get(app)) is not None:
            line.max_ongoing = [replica.max_ongoing for replica in replicas]
            line.pool.update([replica.address for replica in replicas if replica.address is not None])
            self._arrange(line)

    async def close(self) -> None:
        """End all links."""
        await self._lookup.close()
        self._drop(list(self._lines))
        await asyncio.gather(*self._closing)

    async def infer(self, target: Target, inputs: Arrays, *, timeout_s: float) -> dict[str, np.ndarray]:
        """As Transport."""
        until_s = time.monotonic() + timeout_s
        if (line := self.way(target)) is not None:
            outputs = await self._over_link(line, target, inputs, timeout_s)
            if outputs is not None:
                return outputs
        return await self.by_serve(target, inputs, max(0.0, until_s - time.monotonic()))

    async def generate(self, target: Target, request: GenerationRequest) -> AsyncGenerator[GenerationChunk]:
        """As Transport."""
        if (line := self.way(target)) is not None:
            async with contextlib.aclosing(self._pieces(line, target, request)) as pieces:
                async for chunk in pieces:
                    yield chunk
                    if chunk.finish_reason is not None:
                        return
        async with contextlib.aclosing(self._serve.generate(target, request)) as pieces:
            async for chunk in pieces:
                yield chunk

    async def by_serve(self, target: Target, inputs: Arrays, timeout_s: float) -> dict[str, np.ndarray]:
        """As `infer`, by Serve's handles."""
        begun_s, line = time.monotonic(), self._lines.get(target.app)
        has_started = line is not None and line.num_running > 0
        outputs = await self._serve.infer(target, inputs, timeout_s=timeout_s)
        if has_started and (gate := self.gate(target)) is not None:  # else it took the time of a start, too
            gate.observe_whole(time.monotonic() - begun_s)
        return outputs

    def way(self, target: Target) -> Line | None:
        """The line that a request is to go by, now that it is its turn; None: by Serve."""
        line = self._lines.get(target.app)
        if line is None:
            return None
        if line.pool.choose() is None:
            line.say(line.why_none())
            return None
        line.say("")
        return line

    async def _over_link(
        self, line: Line, target: Target, inputs: Arrays, timeout_s: float
    ) -> dict[str, np.ndarray] | None:
        """The outputs; None: it is to go by Serve."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def take(answer: Answer) -> None:
            if future.done():  # cancelled, by a task that has not run since
                answer.release()
            else:
                future.set_result(answer)

        request = send(line.pool, inputs, max(1, round(timeout_s * 1000)), take)
        if request is None:
            return None
        try:
            async with asyncio.timeout(timeout_s):
                answer = await future
        except BaseException:
            if future.done() and not future.cancelled():
                future.result().release()
            request.cancel()
            raise
        try:
            if goes_by_serve(line, request, answer):
                return None
            if line.gate is not None and answer.timings is not None:
                line.gate.observe(answer.timings, time.monotonic())
            return copied_outputs(target, answer)
        finally:
            answer.release()

    async def _pieces(
        self, line: Line, target: Target, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk]:
        """The chunks; none at all: it is to go by Serve."""
        news: asyncio.Queue[GenerationChunk | Answer] = asyncio.Queue()

        def on_piece(piece: bytes, tokens: int) -> None:
            news.put_nowait(generating.read_piece(piece, tokens))

        sent = line.pool.generate(generating.request_bytes(request), 0, on_piece, news.put_nowait)
        if sent is None:
            return
        try:
            is_begun = False
            while not isinstance(found := await news.get(), Answer):
                is_begun = True
                yield found
            if not is_begun and goes_by_serve(line, sent, found):
                return
            yield last_chunk(target, found)
        finally:
            sent.cancel()

    def _opened(self, app: str) -> Line:
        pool = Pool(
            bytes.fromhex(self._links["key"]),
            node=self._node,
            max_frame_bytes=self._links["max_frame_bytes"],
            ring=self._ring,
        )
        return Line(app, pool)

    def _name_gate(self, line: Line, target: Target) -> None:
        """Have a gate for the version as it is now."""
        most = -(-target.max_queued // self._num_gateways)
        name, line.target = transport.what(target), target
        if line.gate is None:
            forecast = TextForecast() if target.card.is_generative else Forecast()
            line.gate = Gate(name, max_queued=most, forecast=forecast)
            self._arrange(line)
        line.gate.name, line.gate.max_queued = name, most

    def _arrange(self, line: Line) -> None:
        if line.gate is not None:
            line.gate.arrange(line.max_ongoing, self._num_gateways, time.monotonic())

    def _drop(self, apps: Collection[str]) -> None:
        for app in apps:
            line = self._lines.pop(app)
            if line.gate is not None:
                line.gate.open(time.monotonic())
            task = asyncio.get_running_loop().create_task(line.pool.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def goes_by_serve(line: Line, request: Request | None, answer: Answer) -> bool:
    """Whether Serve is to have it: it was not begun, or the one second try that there may be is left."""
    if answer.kind == Kind.FAILED and answer.message.startswith(TOO_LARGE):
        return True
    if answer.kind == Kind.GOAWAY:
        return True
    is_first = request is None or not request.is_second
    return answer.kind == Kind.LOST and is_first and line.pool.budget.spend()


def outputs_of(target: Target, answer: Answer) -> dict[str, np.ndarray]:
    """What a RESULT carries: views, good until its release. Raises: as `Transport.infer`."""
    if answer.kind != Kind.RESULT:
        raise error_of(target, answer)
    assert answer.body is not None
    try:
        if answer.slot is None:
            return tensors.read(answer.body)
        return tensors.read_apart(answer.head, answer.body)
    except InputError as error:
        raise transport.failed(target, f"its replica's answer cannot be read: {error}") from None


def copied_outputs(target: Target, answer: Answer) -> dict[str, np.ndarray]:
    """As `outputs_of`, good for ever."""
    found = outputs_of(target, answer)
    return found if answer.slot is None else {name: array.copy() for name, array in found.items()}


def last_chunk(target: Target, answer: Answer) -> GenerationChunk:
    """The end of a text. Raises: as `Transport.generate`."""
    if answer.kind != Kind.RESULT:
        raise error_of(target, answer)
    assert answer.body is not None
    try:
        return generating.read_end(answer.body)
    except FrameError as error:
        raise transport.failed(target, f"its replica's answer cannot be read: {error}") from None


def error_of(target: Target, answer: Answer) -> Exception:
    """What an answer that is no RESULT is to its caller."""
    match answer.kind:
        case Kind.REFUSED:
            return BadInput(answer.message)
        case Kind.OVERLOADED:
            return Overloaded(f"{transport.what(target)}: {answer.message}", answer.retry_after_s)
        case Kind.EXPIRED:
            return TimeoutError(answer.message)
        case Kind.FAILED:
            return transport.failed(target, answer.message)
        case _:
            return transport.went_away(target, answer.message)


def send(pool: Pool, inputs: Arrays, deadline_ms: int, take: OnAnswer) -> Request | None:
    """The request on its way; None: there is no link, or none that carries it."""
    link = pool.choose()
    if link is None:
        return None
    try:
        parts = tensors.write(inputs)
    except tensors.TensorError:
        return None  # the model says what it has against them
    size = sum(map(len, parts))
    if size >= MIN_RING_BYTES:
        if size >= link.max_frame_bytes:
            return None
        if (slot := link.take_slot()) is not None:
            head, *values = parts
            if (length := tensors.put(slot.view, values)) is not None:
                return pool.infer_in_slot(link, slot, 0, length, bytes(head), deadline_ms, take)
            slot.release()
    return pool.infer(parts, deadline_ms, take)
