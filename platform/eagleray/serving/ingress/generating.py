"""Text from a model version: with a time limit between pieces, and closed whatever happens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any

from eagleray.errors import InputError
from eagleray.protocol.events import TextEvents, written
from eagleray.protocol.generation import GenerationChunk, GenerationRequest
from eagleray.serving.ingress.call import Call, named, no_answer
from eagleray.serving.ingress.failures import failure
from eagleray.serving.ingress.http import Stream, WhileWaitedFor
from eagleray.serving.routes import Target
from eagleray.serving.transport import ReplicaFailed

Chunks = AsyncGenerator[GenerationChunk]


def check_generative(target: Target) -> None:
    """Raises: InputError where the model does not generate text."""
    if not target.card.is_generative:
        raise InputError(
            f"{named(target)} does not generate text; POST /v2/models/{target.name}/infer is its route"
        )


async def collect(call: Call, target: Target, request: GenerationRequest) -> list[GenerationChunk]:
    """All chunks, one at least. Raises: as `begin`, at any chunk."""
    with WhileWaitedFor(call.request):
        async with contextlib.aclosing(await _begin(call, target, request)) as chunks:
            chunks.is_whole = True
            return [chunk async for chunk in chunks]


async def begin(call: Call, target: Target, request: GenerationRequest) -> Begun:
    """The chunks, once the first one is there: until then an error can still be answered with a status.

    Raises:
        HttpError: 504, where no chunk came in time.
        ClientGone: nobody waits any more; the replica has stopped.
        EaglerayError: as `Transport.infer`.
    """
    with WhileWaitedFor(call.request):
        return await _begin(call, target, request)


async def _begin(call: Call, target: Target, request: GenerationRequest) -> Begun:
    call.watch.mark("decode")
    call.reserve_tokens(request)
    limit_s = call.left_s
    until_s = time.monotonic() + limit_s
    await call.turn(target)
    key = ""
    if call.ticket is not None:
        key, call.ticket.turn_s = call.ticket.account.key_id, time.monotonic()
    timeout_s = until_s - time.monotonic()
    chunks = call.transport.generate(target, request, key=key, timeout_s=timeout_s, ticket=call.ticket)
    try:
        first = await _next(chunks, call, target, until_s, limit_s)
    except BaseException:
        await chunks.aclose()
        raise
    finally:
        call.watch.mark("replica")
    return Begun(first, chunks, call, target, until_s=until_s, limit_s=limit_s)


def streamed(events: TextEvents, chunks: Begun, call: Call) -> Stream:
    """The answer's events; an error in the middle is an event too, for the status is already sent."""
    return Stream(_events(events, chunks, call), chunks)


async def _events(events: TextEvents, chunks: Begun, call: Call) -> AsyncGenerator[bytes]:
    try:
        async with contextlib.aclosing(written(events, chunks)) as pieces:
            async for piece in pieces:
                yield piece
    except Exception as error:
        found = failure(error, call.request_id)
        yield events.error(found.status, found.message).encode()


class Begun(AsyncGenerator[GenerationChunk]):
    """The first chunk and those after it; closing it closes the replica's, even before it was asked for any.

    (A generator function would not: closed before its first step, it never runs.)
    """

    def __init__(
        self,
        first: GenerationChunk,
        chunks: Chunks,
        call: Call,
        target: Target,
        *,
        until_s: float,
        limit_s: float,
    ) -> None:
        """`limit_s`: the time of a whole text, as before of the first chunk; `until_s`: when it is over."""
        self.is_whole = False
        """Whether the client waits for all of it: that time is for all then, and else one for each chunk."""
        self._until_s, self._limit_s = until_s, limit_s
        self._waiting: GenerationChunk | None = first
        self._is_over = False
        self._chunks, self._call, self._target = chunks, call, target

    async def asend(self, value: None) -> GenerationChunk:
        """The next chunk."""
        if self._is_over:
            raise StopAsyncIteration
        chunk, self._waiting = self._waiting, None
        if chunk is None:
            until_s, limit_s = self._until_s, self._limit_s
            if not self.is_whole:
                limit_s = self._call.state.limits.timeout_s
                until_s = time.monotonic() + limit_s
            chunk = await _next(self._chunks, self._call, self._target, until_s, limit_s)
        self._is_over = chunk.finish_reason is not None
        if self._is_over and self._call.ticket is not None:
            self._call.ticket.text_ended(time.monotonic())
        return chunk

    async def athrow(self, *error: Any) -> GenerationChunk:
        """Close the replica's stream, and raise."""
        self._is_over = True
        await self._chunks.aclose()
        raise error[0] if len(error) == 1 else error[1]

    async def aclose(self) -> None:
        """Close the replica's stream."""
        self._is_over = True
        await self._chunks.aclose()


async def _next(
    chunks: Chunks, call: Call, target: Target, until_s: float, limit_s: float
) -> GenerationChunk:
    try:
        async with call.waiting(until_s - time.monotonic()):
            chunk = await anext(chunks)
    except TimeoutError:
        call.check_ended()
        raise no_answer(target, limit_s) from None
    except StopAsyncIteration:
        raise ReplicaFailed(f"{named(target)} stopped in the middle of its answer") from None
    call.num_tokens = chunk.prompt_tokens + chunk.completion_tokens
    return chunk
