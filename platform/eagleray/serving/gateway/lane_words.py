"""The heads of the fast lane: what is read of a request's, and an answer's as uvicorn writes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from eagleray.protocol import binary
from eagleray.serving.admission import deadline
from eagleray.serving.ingress.http import EVENT_STREAM, STREAM_HEADERS, Response

_READ = {
    name.encode(): name
    for name in (
        *("authorization", "host", "origin", "content-length", "content-encoding", "accept-encoding"),
        *("x-request-id", "traceparent", "cache-control", binary.HEADER, deadline.HEADER),
    )
}


def read_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Those that mean something to the lane; of a repeated one the last."""
    read = _READ
    return {read[name]: value.decode("latin-1") for name, value in headers if name in read}


def head_of(response: Response, before: Iterable[tuple[bytes, bytes]], *, keep_alive: bool) -> bytes:
    """Up to the body; `before` are the headers that each answer has."""
    lines = _lines(response.status, response.media_type, response.headers, before)
    end = b"" if keep_alive else b"connection: close\r\n"
    return b"%bcontent-length: %d\r\n%b\r\n" % (lines, len(response.body), end)


def stream_head_of(
    headers: Mapping[str, str], before: Iterable[tuple[bytes, bytes]], *, keep_alive: bool
) -> bytes:
    """As `head_of`, of server-sent events that come in chunks."""
    lines = _lines(200, EVENT_STREAM, {**headers, **STREAM_HEADERS}, before)
    end = b"" if keep_alive else b"connection: close\r\n"
    return b"%b%btransfer-encoding: chunked\r\n\r\n" % (lines, end)


def _lines(
    status: int, media_type: str, headers: Mapping[str, str], before: Iterable[tuple[bytes, bytes]]
) -> bytes:
    first = b"".join([b"%b: %b\r\n" % pair for pair in before])
    lines = [f"content-type: {media_type}\r\nx-content-type-options: nosniff\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
    return STATUS_LINE[status] + first + "".join(lines).encode("latin-1")
