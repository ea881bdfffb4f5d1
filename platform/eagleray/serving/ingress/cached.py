"""Inference by the application for a version whose answers are kept: as the fast lane's, with a Task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from eagleray.protocol import binary
from eagleray.serving.gateway import cache
from eagleray.serving.gateway.cache import Kept, Shelf
from eagleray.serving.ingress import coding
from eagleray.serving.ingress.call import Call, no_answer
from eagleray.serving.ingress.http import Response, WhileWaitedFor
from eagleray.serving.routes import Target

Infer = Callable[[Call, Target, bytes], Awaitable[Response]]
"""Has the replica answer the body; the answer is as it is sent, but for what is the request's alone."""


class _Waiting:
    """A Waiter: `answer` becomes the other's, or None where there will be none."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Kept | None] = asyncio.get_running_loop().create_future()

    def take(self, kept: Kept) -> None:
        """As Waiter."""
        if not self.answer.done():
            self.answer.set_result(kept)

    def go_on(self) -> None:
        """As Waiter."""
        if not self.answer.done():
            self.answer.set_result(None)


async def answer(call: Call, target: Target, body: bytes, infer: Infer) -> Response:
    """As `infer`, where no such answer is kept. Raises: as `infer`; HttpError 504; ClientGone."""
    headers = call.request.headers
    shelf = call.cache.shelf(target)
    wishes = cache.wishes(headers.get("cache-control"))
    if shelf is None:
        return await infer(call, target, body)
    if wishes.is_private:
        shelf.count("bypassed")
        response = await infer(call, target, body)
        response.headers[cache.STATUS] = cache.REQUESTED
        return response
    key = await _key(call, shelf, body)
    call.watch.mark("cache")
    if not wishes.is_fresh and (kept := shelf.find(key)) is not None:
        return _again(kept, cache.HIT)
    waiting = _Waiting()
    seat = shelf.alone(key, waiting) if wishes.is_fresh else shelf.join(key, waiting)
    try:
        if not seat.is_leading:
            body = seat.shared(body)
            if (kept := await _others(call, target, waiting)) is not None:
                return _again(kept, cache.SHARED)
        response = await infer(call, target, body)
        seat.keep(response)
        return response
    finally:
        seat.leave()


async def _key(call: Call, shelf: Shelf, body: bytes) -> bytes:
    headers = call.request.headers
    terms = body, headers.get(binary.HEADER, ""), coding.liked(headers.get("accept-encoding", "")) or ""
    return shelf.key(*terms) if len(body) < cache.LONG_BYTES else await asyncio.to_thread(shelf.key, *terms)


async def _others(call: Call, target: Target, waiting: _Waiting) -> Kept | None:
    """The answer of who leads; None: there will be none. Raises: HttpError 504; ClientGone."""
    timeout_s, start_s = call.left_s, time.monotonic()
    try:
        with WhileWaitedFor(call.request):
            async with call.waiting(timeout_s):
                return await waiting.answer
    except TimeoutError:
        call.check_ended()
        raise no_answer(target, timeout_s) from None
    finally:
        call.waited_s += time.monotonic() - start_s
        call.watch.mark("cache")


def _again(kept: Kept, status: str) -> Response:
    return Response(kept.body, media_type=kept.media_type, headers=kept.headers_for(status))
