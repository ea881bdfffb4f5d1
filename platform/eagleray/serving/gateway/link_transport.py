"""`LinkTransport`: requests go to replicas over links, and by Serve's handles where there is no link."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from eagleray.protocol.generation import GenerationChunk, GenerationRequest
from eagleray.serving import transport
from eagleray.serving.admission.deadline import Forecast, TextForecast
from eagleray.serving.admission.gate import Gate
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.gateway.demand import Demand
from eagleray.serving.gateway.line import Arrays, Line, goes_by_serve, is_second_try, send
from eagleray.serving.gateway.link_answers import copied_outputs, last_chunk
from eagleray.serving.gateway.lookup_ray260 import Lookup, OnChange, Running, Watcher
from eagleray.serving.gateway.parking import Parking, num_bytes
from eagleray.serving.ingress import passage
from eagleray.serving.link import generating
from eagleray.serving.link.answers import Answer
from eagleray.serving.link.frames import FrameError, Kind
from eagleray.serving.link.pool import Pool
from eagleray.serving.link.ring import RingOptions
from eagleray.serving.routes import Target
from eagleray.serving.services import Trouble
from eagleray.serving.transport import Fallback

RING = RingOptions(slots=16, slot_bytes=4 << 20)


class LinkTransport:
    """A Transport. For one event loop.

    Args:
        serve: Takes what no link can: what is too large for its frames, say.
        node: This process's node, as Ray knows it.
        ring: Shared memory for each link on this node.
        look_up: Tells which replicas an application has.
        demand: Told what comes, and what waits for a first replica.
    """

    def __init__(
        self,
        serve: Fallback,
        *,
        node: str,
        ring: RingOptions | None = RING,
        look_up: Callable[[OnChange], Watcher] = Lookup,
        demand: Demand | None = None,
    ) -> None:
        self.demand = demand or Demand()
        self.parking = Parking(self.demand)
        self._troubles: Mapping[str, Trouble] = {}
        self._serve, self._node, self._ring = serve, node, ring
        self._links: Mapping[str, Any] = {}
        self._lines: dict[str, Line] = {}
        self._num_gateways = 1
        self.demand.look = self._tell
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
        self._num_gateways = self.parking.num_gateways = max(1, num_gateways)
        for line in self._lines.values():
            if line.target is not None:
                self._name_gate(line, line.target)  # of what may wait each has a part, too
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
        self.demand.keep_only(apps)
        self.parking.keep_only(apps)

    def expect(self, starts: Mapping[str, float]) -> None:
        """Take down how long each application took to start: what who finds no room is told at first."""
        self.parking.expect(starts)
        self._serve.expect(starts)

    def ail(self, troubles: Mapping[str, Trouble]) -> None:
        """These applications were to start a replica, and it did not come up; what is new counts."""
        before, self._troubles = self._troubles, troubles
        for app, trouble in troubles.items():
            if trouble != before.get(app):
                self.parking.fail(app, trouble)

    def update(self, app: str, replicas: Sequence[Running]) -> None:
        """These replicas of an application run now."""
        if (line := self._lines.get(app)) is not None:
            line.max_ongoing = [replica.max_ongoing for replica in replicas]
            line.pool.update([replica.address for replica in replicas if replica.address is not None])
            self._let_go(app)

    async def close(self) -> None:
        """End all links."""
        await self._lookup.close()
        self._drop(list(self._lines))
        await asyncio.gather(*self._closing)

    async def infer(
        self,
        target: Target,
        inputs: Arrays,
        *,
        timeout_s: float,
        ticket: Ticket | None = None,
        is_second: bool = False,
    ) -> dict[str, np.ndarray]:
        """As Transport; `is_second`: as Fallback, whose it then is, once there is a replica."""
        until_s = time.monotonic() + timeout_s
        line = self.way(target)
        if line is None and self.is_awaited(target):
            line = await self._awaited(target, num_bytes(inputs), until_s, ticket)
            timeout_s = max(0.0, until_s - time.monotonic())
        if line is not None and not is_second:
            outputs, is_second = await self._over_link(line, target, inputs, timeout_s)
            if outputs is not None:
                return outputs
        if ticket is not None:
            ticket.foretold_s = 0.0  # that was for a link
        left_s = max(0.0, until_s - time.monotonic())
        return await self._by_serve(target, inputs, left_s, is_second=is_second)

    async def generate(
        self,
        target: Target,
        request: GenerationRequest,
        *,
        key: str = "",
        timeout_s: float | None = None,
        ticket: Ticket | None = None,
    ) -> AsyncGenerator[GenerationChunk]:
        """As Transport."""
        line = self.way(target)
        if line is None and self.is_awaited(target):
            until_s = None if timeout_s is None else time.monotonic() + timeout_s
            line = await self._awaited(target, len(request.prompt.encode()), until_s, ticket)
            if ticket is not None:
                ticket.turn_s = time.monotonic()  # a start says nothing of how long texts take
        if line is not None and not (ticket is not None and ticket.was_lost):
            async with contextlib.aclosing(self._pieces(line, target, request, key)) as pieces:
                async for chunk in pieces:
                    yield chunk
                    if chunk.finish_reason is not None:
                        return
        self._count_by_serve(target)
        async with contextlib.aclosing(self._serve.generate(target, request, key=key)) as pieces:
            async for chunk in pieces:
                yield chunk

    async def by_serve(
        self,
        target: Target,
        inputs: Arrays,
        timeout_s: float,
        ticket: Ticket | None = None,
        *,
        is_second: bool = False,
    ) -> dict[str, np.ndarray]:
        """As `infer`, for what `way` has no line for, or its line did not carry: mostly by Serve's."""
        if self.is_awaited(target):
            return await self.infer(target, inputs, timeout_s=timeout_s, ticket=ticket, is_second=is_second)
        return await self._by_serve(target, inputs, timeout_s, is_second=is_second)

    async def _by_serve(
        self, target: Target, inputs: Arrays, timeout_s: float, *, is_second: bool
    ) -> dict[str, np.ndarray]:
        begun_s, line = time.monotonic(), self._lines.get(target.app)
        has_started = line is not None and line.num_running > 0
        self._count_by_serve(target)
        outputs = await self._serve.infer(target, inputs, timeout_s=timeout_s, is_second=is_second)
        if has_started and (gate := self.gate(target)) is not None:  # else it took the time of a start, too
            gate.observe_whole(time.monotonic() - begun_s)
        return outputs

    def _count_by_serve(self, target: Target) -> None:
        if (line := self._lines.get(target.app)) is not None:
            line.num_by_serve += 1

    def ways(self) -> dict[tuple[str, str, str], int]:
        """How many requests went to replicas by each way: by model, version and way."""
        found = {}
        for line in self._lines.values():
            if (target := line.target) is not None:
                found[target.name, str(target.version), "link"] = line.pool.num_sent
                found[target.name, str(target.version), "serve"] = line.num_by_serve
        return found

    def laned(self) -> dict[tuple[str, str], int]:
        """How many of those that went over links were the fast lane's: by model and version."""
        return {
            (line.target.name, str(line.target.version)): line.num_by_lane
            for line in self._lines.values()
            if line.target is not None
        }

    def way(self, target: Target) -> Line | None:
        """The line of a request whose turn it is, asked once for each; None: `by_serve` finds another way."""
        line = self._lines.get(target.app)
        if line is None:
            return None
        if line.pool.choose() is None:
            line.say("" if line.is_awaited else line.why_none())
            return None
        line.say("")
        return line

    def is_awaited(self, target: Target) -> bool:
        """Whether a request waits here for the target's first replica."""
        line = self._lines.get(target.app)
        return line is not None and line.is_awaited

    async def _awaited(
        self, target: Target, size: int, until_s: float | None, ticket: Ticket | None
    ) -> Line | None:
        """The line, once there is a link and it is the request's turn; None: by Serve.

        Raises: as `Parking.wait`; TimeoutError where it waits for its turn until then.
        """
        while self.is_awaited(target):
            turn = None if ticket is None else passage.turn_again(ticket)
            left_s = None if until_s is None else max(0.0, until_s - time.monotonic())
            await self.parking.wait(target, size, left_s, ticket=ticket)
            if turn is not None and ticket is not None and ticket.entry is not None:
                left_s = None if until_s is None else max(0.0, until_s - time.monotonic())
                async with asyncio.timeout(left_s):
                    await turn
        line = self._lines.get(target.app)
        return line if line is not None and line.pool.choose() is not None else None

    def _let_go(self, app: str) -> None:
        """Let what waits for a replica go on, where that is there; those that come now wait behind it."""
        if (line := self._lines.get(app)) is None:
            return
        self._arrange(line)
        if not line.is_awaited:
            tickets = self.parking.release(app)
            if tickets and line.gate is not None:
                line.gate.again(tickets, time.monotonic())

    async def _over_link(
        self, line: Line, target: Target, inputs: Arrays, timeout_s: float
    ) -> tuple[dict[str, np.ndarray] | None, bool]:
        """The outputs; None: it is to go by Serve, and whether that `is_second_try`."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def take(answer: Answer) -> None:
            if future.done():  # cancelled, by a task that has not run since
                answer.release()
            else:
                future.set_result(answer)

        request = send(line.pool, inputs, max(1, round(timeout_s * 1000)), take)
        if request is None:
            return None, False
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
                return None, is_second_try(request, answer)
            if line.gate is not None and answer.timings is not None:
                line.gate.observe(answer.timings, time.monotonic())
            return copied_outputs(target, answer), False
        finally:
            answer.release()

    async def _pieces(
        self, line: Line, target: Target, request: GenerationRequest, key: str
    ) -> AsyncGenerator[GenerationChunk]:
        """The chunks; none at all: it is to go by Serve."""
        news: asyncio.Queue[GenerationChunk | Answer] = asyncio.Queue()

        def on_piece(piece: bytes, tokens: int) -> None:
            try:
                if news.qsize() > request.max_tokens:  # nobody need keep them, however slow its reader
                    raise FrameError(f"more pieces than the {request.max_tokens} tokens it was asked for")
                news.put_nowait(generating.read_piece(piece, tokens))
            except FrameError as error:  # raised into the link, it would cancel the text and tell nobody
                assert sent is not None
                sent.cancel()
                news.put_nowait(Answer(Kind.FAILED, message=f"its replica's answer cannot be read: {error}"))

        sent = line.pool.generate(generating.request_bytes(request, key), 0, on_piece, news.put_nowait)
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
            on_change=lambda: self._let_go(app),
        )
        return Line(app, pool)

    def _name_gate(self, line: Line, target: Target) -> None:
        """Have a gate for the version as it is now."""
        most = -(-target.max_queued // self._num_gateways)
        name, line.target = transport.what(target), target
        if line.gate is None:
            forecast = TextForecast() if target.card.is_generative else Forecast()
            line.gate = Gate(name, max_queued=most, forecast=forecast)
            line.gate.on_waiting = self.demand.is_urgent.set
            self._arrange(line)
        line.gate.name, line.gate.max_queued = name, most

    def _tell(self) -> None:
        """Let the demand know what waits at the gates, and what has come there."""
        for app, line in self._lines.items():
            if (gate := line.gate) is not None and line.target is not None:
                queued, is_text = gate.num_queued, line.target.card.is_generative
                arrived = 0 if is_text else gate.num_entered + gate.num_refused
                self.demand.told(app, queued, arrived, texts=queued if is_text else 0)

    def _arrange(self, line: Line) -> None:
        """Have the gate as wide as the replicas that run, once there is a way to one of them."""
        if line.gate is not None and not (line.num_running and line.is_awaited):
            line.gate.arrange(line.max_ongoing, self._num_gateways, time.monotonic())

    def _drop(self, apps: Collection[str]) -> None:
        for app in apps:
            line = self._lines.pop(app)
            if line.gate is not None:
                line.gate.open(time.monotonic())
            task = asyncio.get_running_loop().create_task(line.pool.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
