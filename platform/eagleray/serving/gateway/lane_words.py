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
        *("authorization", "host", "origin", "content-length", "accept-encoding", "x-request-id"),
        *("traceparent", "cache-control", binary.HEADER, deadline.HEADER),
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
    lines.append(b"content-length: %d\r\n%b\r\n" % (len(response.body), end))
    return b"".join(lines)


def stream_head_of(
    headers: Mapping[str, str], before: Iterable[tuple[bytes, bytes]], *, keep_alive: bool
) -> bytes:
    """As `head_of`, of server-sent events that come in chunks."""
    lines = _lines(200, EVENT_STREAM, {**headers, **STREAM_HEADERS}, before)
    if not keep_alive:
        lines.append(b"connection: close\r\n")
    lines.append(b"transfer-encoding: chunked\r\n\r\n")
    return b"".join(lines)


def _lines(
    status: int, media_type: str, headers: Mapping[str, str], before: Iterable[tuple[bytes, bytes]]
) -> list[bytes]:
    lines = [STATUS_LINE[status]]
    for name, value in before:
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"content-type: %b\r\nx-content-type-options: nosniff\r\n" % media_type.encode())
    for header, text in headers.items():
        lines.append(f"{header}: {text}\r\n".encode("latin-1"))
    return lines
