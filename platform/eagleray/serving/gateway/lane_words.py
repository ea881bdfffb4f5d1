"""The heads of the fast lane: what is read of a request's, and an answer's as uvicorn writes it."""

from __future__ import annotations

from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from eagleray.protocol import binary
from eagleray.serving.admission import deadline
from eagleray.serving.ingress.http import Response

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
    lines = [STATUS_LINE[response.status]]
    for name, value in before:
        lines += (name, b": ", value, b"\r\n")
    media_type = response.media_type.encode()
    lines.append(b"content-type: %b\r\nx-content-type-options: nosniff\r\n" % media_type)
    for header, text in response.headers.items():
        lines.append(f"{header}: {text}\r\n".encode("latin-1"))
    end = b"" if keep_alive else b"connection: close\r\n"
    lines.append(b"content-length: %d\r\n%b\r\n" % (len(response.body), end))
    return b"".join(lines)
