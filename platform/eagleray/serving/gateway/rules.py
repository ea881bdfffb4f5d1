"""What a request's head may be, beside what the parser takes (llhttp, strict)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_MOST_DIGITS = 19
"""Of a body's length: no body has more bytes, and 64 bits hold them."""
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")


@dataclass(frozen=True)
class Rules:
    """Limits of one connection."""

    max_target_bytes: int = 8 * 2**10
    max_head_bytes: int = 32 * 2**10
    max_headers: int = 100
    max_pipelined: int = 16
    """Requests that wait for the answer to one before them."""
    head_s: float = 20.0
    """From a connection's begin, or a request's first byte, to the end of its head."""
    linger_s: float = 5.0
    """How long a body that nobody wants may go on, so that its sender reads the answer."""
    linger_bytes: int = 64 * 2**20
    stalled_s: float = 60.0
    """A client that has taken nothing of its answer for so long is left."""


class Refused(Exception):
    """What came is not answered by the application."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def check_head(version: str, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises: Refused where proxies could take the request for another one.

    Source: RFC 9112, sections 3.2 and 6; lengths and chunk sizes are the parser's to check, but for zeros in
    front of a length, which it takes, and others may cut off at some digit.
    """
    if version not in ("1.1", "1.0"):
        raise Refused(505, f"HTTP/{version} is not spoken here; HTTP/1.1 is")
    if method == b"CONNECT":
        raise Refused(501, "this is no proxy")
    if target[:1] != b"/":
        raise Refused(400, "the request's target is not a path")
    hosts = []
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"transfer-encoding":
            _check_coding(version, value)
        elif name == b"content-length":
            if len(value) > _MOST_DIGITS:
                raise Refused(400, f"Content-Length has {len(value)} digits; send it without zeros in front")
        elif name == b"expect" and value.lower() != b"100-continue":
            raise Refused(417, "of Expect only 100-continue is known")
    _check_hosts(version, hosts)


def _check_hosts(version: str, hosts: Sequence[bytes]) -> None:
    if len(hosts) > 1:
        raise Refused(400, f"{len(hosts)} Host headers; send one")
    if not hosts and version == "1.1":
        raise Refused(400, "no Host header")
    if hosts and _HOST.fullmatch(hosts[0]) is None:
        raise Refused(400, "the Host header names no host")


def _check_coding(version: str, value: bytes) -> None:
    if version == "1.0":
        raise Refused(400, "HTTP/1.0 has no Transfer-Encoding")
    if value.lower() != b"chunked":
        raise Refused(
            501, "of Transfer-Encoding only chunked is known; Content-Encoding says how it is packed"
        )
