"""One HTTP exchange on raw ASGI: a request whose body is counted as it comes, and two kinds of answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from eagleray.protocol.infer import dumps
from eagleray.serving.ingress import coding

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""A proxy that buffers would hold the pieces back: nginx is told so by the second."""

_QUICK_S = 0.1


class HttpError(Exception):
    """An answer other than the one asked for, when no error of ours says it better."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


class ClientGone(Exception):
    """The client closed the connection: there is nobody to answer."""


@dataclass
class Request:
    """What a client sent. The body is read when it is asked for, and never beyond the limit."""

    scope: Scope
    receive: Receive
    headers: Mapping[str, str]
    """Lower-case names; of a repeated header the last."""
    num_body_bytes: int = 0

    @property
    def method(self) -> str:
        """GET, POST, and so on."""
        return self.scope["method"]

    def segments(self) -> list[str]:
        """The path's parts, percent-decoded one by one: an encoded slash does not divide.

        Raises:
            HttpError: 400, where the path is not UTF-8.
        """
        raw = self.scope.get("raw_path") or self.scope["path"].encode()
        path = raw.partition(b"?")[0].decode("latin-1").removeprefix(self.scope.get("root_path", ""))
        try:
            parts = [unquote(part, errors="strict") for part in path.split("/")[1:]]
        except UnicodeDecodeError:
            raise HttpError(400, "the path is not UTF-8") from None
        return parts[:-1] if parts and not parts[-1] else parts

    @property
    def media_type(self) -> str:
        """Content-Type without parameters, lower-case; "" where there is none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def announced_bytes(self) -> int:
        """As the function."""
        return announced_bytes(self.headers)

    async def body(self, limit_bytes: int, timeout_s: float) -> bytes:
        """The whole body, unpacked.

        Raises:
            HttpError: 413 as soon as it is known to be larger than `limit_bytes`, as it comes or unpacked,
                whether its length was announced or not; 408 after `timeout_s`; 415 for a coding that is not
                known.
            InputError: its packed data are damaged.
            ClientGone: the connection ended before the body did.
        """
        name = self._coding()
        self._check_announced(limit_bytes)
        try:
            async with asyncio.timeout(timeout_s):
                body = await self._read(limit_bytes)
        except TimeoutError:
            raise HttpError(408, f"the body was not there within {timeout_s:g} s") from None
        if name is None:
            return body
        try:
            return await coding.unpacked(body, name, limit_bytes)
        except coding.TooLarge:
            raise too_large(limit_bytes, f"its {len(body)} bytes unpack to more") from None

    def _coding(self) -> str | None:
        header = self.headers.get("content-encoding", "")
        try:
            return coding.coding_of(header)
        except KeyError:
            known = " or ".join(coding.CODINGS)
            raise HttpError(
                415,
                f"Content-Encoding {header[:40]!r} is not supported; send {known}, or the body as it is",
                {"accept-encoding": ", ".join(coding.CODINGS)},
            ) from None

    def _check_announced(self, limit_bytes: int) -> None:
        if (num_bytes := self.announced_bytes) > limit_bytes:
            raise too_large(limit_bytes, f"it has {num_bytes}")

    async def _read(self, limit_bytes: int) -> bytes:
        parts: list[bytes] = []
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            if part := message.get("body", b""):
                self.num_body_bytes += len(part)
                if self.num_body_bytes > limit_bytes:
                    raise too_large(limit_bytes, f"{self.num_body_bytes} came and it went on")
                parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)


def announced_bytes(headers: Mapping[str, str]) -> int:
    """Content-Length; 0 where there is none, or one that is no number.

    It may begin with any number of zeros. Read as less than the parser reads, it would end a body early, and
    the rest of the body would be taken for requests.
    """
    length = headers.get("content-length", "0")
    return int(length.lstrip("0")[:20] or "0") if length.isascii() and length.isdecimal() else 0


def too_large(limit_bytes: int, found: str) -> HttpError:
    """413; `found` says what came."""
    return HttpError(413, f"the body is larger than {limit_bytes} bytes ({found}); send less at a time")


@dataclass
class Response:
    """An answer that is known as a whole."""

    body: bytes = b""
    status: int = HTTPStatus.OK
    media_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0
    """Sent so far."""

    async def pack(self, request: Request) -> None:
        """Put the body into a coding that the client asked for, if it asked and the body gets smaller."""
        found = await coding.packed(self.body, request.headers.get("accept-encoding", ""))
        if found is not None:
            self.take_packed(*found)

    def take_packed(self, body: bytes, name: str) -> None:
        """Have the body in a coding that the client asked for."""
        self.body, self.headers["content-encoding"] = body, name
        self.headers["vary"] = "accept-encoding"

    async def send(self, request: Request, send: Send) -> None:
        """Send it, once."""
        length = str(len(self.body))
        await send(_start(self.status, self.media_type, {**self.headers, "content-length": length}))
        body = b"" if request.method == "HEAD" else self.body
        self.num_bytes = len(body)
        await send({"type": "http.response.body", "body": body})


@dataclass
class Stream:
    """An answer that comes piece by piece; `pieces`, then `source`, are closed when the client has gone."""

    pieces: AsyncGenerator[bytes]
    source: AsyncGenerator[Any]
    """What `pieces` draws from: closed here too, for pieces that never began close nothing."""
    media_type: str = EVENT_STREAM
    status: int = HTTPStatus.OK
    headers: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0
    """Sent so far."""

    async def send(self, request: Request, send: Send) -> None:
        """Send what comes until it ends or the client has gone."""
        start = _start(self.status, self.media_type, {**self.headers, **STREAM_HEADERS})
        try:
            with WhileWaitedFor(request):
                await self._pump(send, start)
        except ClientGone:
            pass  # it has what it read
        finally:
            await self.pieces.aclose()
            await self.source.aclose()

    async def _pump(self, send: Send, start: Message) -> None:
        await send(start)
        async for piece in self.pieces:
            self.num_bytes += len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class WhileWaitedFor:
    """`with WhileWaitedFor(request):` cancels its block when the client closes the connection.

    The body must have been read. Raises, out of the block: ClientGone. For the first 0.1 s nobody looks: most
    answers are there by then, and the timer costs 4 us where a task that listens costs 40.
    """

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self._listener: asyncio.Task[None] | None = None
        self._is_gone = self._is_over = False

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._num_cancels = self._task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(_QUICK_S, self._listen)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._is_over = True
        self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()
        if self._is_gone:
            assert self._task is not None
            is_ours_alone = self._task.uncancel() <= self._num_cancels
            if is_ours_alone and isinstance(error, asyncio.CancelledError):
                raise ClientGone from None

    def _listen(self) -> None:
        self._listener = asyncio.ensure_future(_disconnected(self._receive))
        self._listener.add_done_callback(self._heard)

    def _heard(self, listener: asyncio.Task[None]) -> None:
        # Where nothing can be received any more, nobody can be answered either.
        if not self._is_over and not listener.cancelled():
            listener.exception()
            self._is_gone = True
            assert self._task is not None
            self._task.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, media_type: str, headers: Mapping[str, str]) -> Message:
    lines = [(b"content-type", media_type.encode()), (b"x-content-type-options", b"nosniff")]
    lines += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": int(status), "headers": lines}


def json_response(values: Any, status: int = HTTPStatus.OK) -> Response:
    """`values` as JSON."""
    return Response(dumps(values), status)
