"""Pretending replicas at the other end of real links, for the tests that go over both transports."""

from __future__ import annotations

import asyncio
import tempfile
import weakref
from collections.abc import AsyncGenerator, Collection, Coroutine, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from eagleray.errors import InputError
from eagleray.protocol.generation import GenerationChunk, GenerationRequest
from eagleray.protocol.tensors import Array
from eagleray.serving.admission.gate import Gate
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.gateway.link_transport import LinkTransport
from eagleray.serving.gateway.lookup_ray260 import OnChange, Running
from eagleray.serving.link import generating, tensors
from eagleray.serving.link.calls import Call, GenerateCall, InferCall
from eagleray.serving.link.server import LinkServer
from eagleray.serving.link.sockets import ReplicaAddress
from eagleray.serving.replica.listening import frame_bytes
from eagleray.serving.routes import Target
from eagleray.serving.transport import Overloaded, ReplicaFailed, Transport
from support.links import KEY, TIMINGS, has_link

NODE = "n"
LINKS = {"key": KEY.hex(), "max_frame_bytes": frame_bytes(16 << 20)}


class PretendReplica:
    """A link's Handler in front of a Transport that answers."""

    def __init__(self, target: Target, behind: Transport) -> None:
        self._target, self._behind = target, behind
        self._tasks: dict[Call, asyncio.Task[None]] = {}

    def infer(self, call: InferCall) -> None:
        self._begin(call, self._infer(call))

    def generate(self, call: GenerateCall) -> None:
        self._begin(call, self._generate(call))

    def cancel(self, call: Call) -> None:
        if (task := self._tasks.get(call)) is not None:
            task.cancel()

    def flush(self) -> None:
        """Each is begun as it comes."""

    def _begin(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[call] = asyncio.get_running_loop().create_task(self._ended(call, work))
        task.add_done_callback(lambda _: self._tasks.pop(call))

    async def _ended(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            call.expire()
        except InputError as error:
            call.refuse(str(error))
        except Overloaded as error:
            call.overload(str(error), error.retry_after_s)
        except ReplicaFailed as error:
            call.fail(str(error))
        except Exception as error:
            call.fail(f"{type(error).__name__}: {error}")

    async def _infer(self, call: InferCall) -> None:
        inputs = {name: array.copy() for name, array in call.inputs().items()}
        outputs = await self._behind.infer(self._target, inputs, timeout_s=60)
        size = max(map(len, inputs.values()), default=1)
        call.answer(tensors.write(outputs), TIMINGS._replace(batch_size=size))

    async def _generate(self, call: GenerateCall) -> None:
        request, key = generating.read_request(call.request)
        async with aclosing(self._behind.generate(self._target, request, key=key)) as chunks:
            async for chunk in chunks:
                if chunk.finish_reason is None:
                    call.piece(generating.piece_bytes(chunk), chunk.completion_tokens)
                else:
                    call.end(generating.end_bytes(chunk), TIMINGS)


class NoServe:
    """What links fall back to, where a test expects that they do not."""

    async def infer(
        self,
        target: Target,
        inputs: Mapping[str, Array],
        *,
        timeout_s: float,
        ticket: Ticket | None = None,
        is_second: bool = False,
    ) -> dict[str, Array]:
        raise AssertionError(f"{target.app} fell back to Serve")

    async def generate(
        self,
        target: Target,
        request: GenerationRequest,
        *,
        key: str = "",
        timeout_s: float | None = None,
        ticket: Ticket | None = None,
    ) -> AsyncGenerator[GenerationChunk]:
        raise AssertionError(f"{target.app} fell back to Serve")
        yield

    def expect(self, starts: Mapping[str, float]) -> None:
        """Nothing is known."""

    def keep_only(self, apps: Collection[str]) -> None:
        """There are none."""


class NoLookup:
    """Nobody tells: the test does."""

    def __init__(self, on_change: OnChange) -> None:
        """As Lookup."""

    def follow(self, apps: Collection[str]) -> None:
        """As Lookup."""

    async def close(self) -> None:
        """As Lookup."""


class LinkedTransport:
    """A Transport over real links to pretending replicas, started when they are first asked for."""

    def __init__(self, behind: Transport) -> None:
        self._behind = behind
        self.max_ongoing = 1000
        """Requests that each replica is said to take at a time."""
        self._folder = tempfile.TemporaryDirectory(prefix="link-")
        self._servers: dict[str, tuple[LinkServer, ReplicaAddress]] = {}
        self._by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LinkTransport] = (
            weakref.WeakKeyDictionary()
        )

    async def infer(
        self,
        target: Target,
        inputs: Mapping[str, Array],
        *,
        timeout_s: float,
        ticket: Ticket | None = None,
    ) -> dict[str, Array]:
        transport = await self.linked(target)
        return await transport.infer(target, inputs, timeout_s=timeout_s, ticket=ticket)

    async def generate(
        self,
        target: Target,
        request: GenerationRequest,
        *,
        key: str = "",
        timeout_s: float | None = None,
        ticket: Ticket | None = None,
    ) -> AsyncGenerator[GenerationChunk]:
        transport = await self.linked(target)
        found = transport.generate(target, request, key=key, timeout_s=timeout_s, ticket=ticket)
        async with aclosing(found) as chunks:
            async for chunk in chunks:
                yield chunk

    def gate(self, target: Target) -> Gate | None:
        """As LinkTransport, of this loop's."""
        transport = self._by_loop.get(asyncio.get_running_loop())
        return None if transport is None else transport.gate(target)

    async def linked(self, *targets: Target) -> LinkTransport:
        """The transport of this loop, with a link to each target."""
        loop = asyncio.get_running_loop()
        transport = self._by_loop.get(loop)
        if transport is None:
            transport = self._by_loop[loop] = LinkTransport(NoServe(), node=NODE, look_up=NoLookup)
        new = [target for target in targets if transport.line(target.app) is None]
        for target in new:
            self.serve(target)
        if new:
            transport.follow(LINKS, list(self._servers))
            for app, (_, address) in self._servers.items():
                transport.update(app, [Running(address, self.max_ongoing)])
        for target in targets:
            line = transport.line(target.app)
            assert line is not None
            await has_link(line.pool)
        return transport

    def serve(self, target: Target) -> ReplicaAddress:
        """Have a replica for it, and say where."""
        if target.app not in self._servers:
            server = LinkServer(
                PretendReplica(target, self._behind),
                KEY,
                folder=Path(self._folder.name) / "s",
                host="127.0.0.1",
                max_frame_bytes=LINKS["max_frame_bytes"],
                node=NODE,
            )
            self._servers[target.app] = (server, server.start())
        return self._servers[target.app][1]

    async def leave(self) -> None:
        """End the links of this loop."""
        if (transport := self._by_loop.pop(asyncio.get_running_loop(), None)) is not None:
            await transport.close()

    def close(self) -> None:
        """End the replicas."""
        for server, _ in self._servers.values():
            server.close(0)
        self._folder.cleanup()
