"""Text from a model version: with a time limit between pieces, and closed whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from eagleray.errors import InputError
from eagleray.protocol.generation import GenerationChunk, GenerationRequest
from eagleray.serving.ingress.call import Call, named, no_answer
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
    async with contextlib.aclosing(await begin(call, target, request)) as chunks:
        return [chunk async for chunk in chunks]


async def begin(call: Call, target: Target, request: GenerationRequest) -> Chunks:
    """The chunks, once the first one is there: until then an error can still be answered with a status.

    Raises:
        HttpError: 504, where no chunk came in time.
        EaglerayError: as `Transport.infer`.
    """
    chunks = call.transport.generate(target, request)
    try:
        first = await _next(chunks, call, target)
    except BaseException:
        await chunks.aclose()
        raise
    return _rest(first, chunks, call, target)


async def _rest(first: GenerationChunk, chunks: Chunks, call: Call, target: Target) -> Chunks:
    async with contextlib.aclosing(chunks):
        yield (chunk := first)
        while chunk.finish_reason is None:
            yield (chunk := await _next(chunks, call, target))


async def _next(chunks: Chunks, call: Call, target: Target) -> GenerationChunk:
    timeout_s = call.state.limits.timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(chunks)
    except TimeoutError:
        raise no_answer(target, timeout_s) from None
    except StopAsyncIteration:
        raise ReplicaFailed(f"{named(target)} stopped in the middle of its answer") from None
