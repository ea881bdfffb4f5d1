"""Heads of requests that come again byte for byte, as those of a client do that keeps its connection.

What the parser and the rules made of such a head once they would make of it again: it is read no more. A head
is known from the second time on that a connection has said it twice in a row, so that heads which differ from
request to request (by a trace's id, say) cost no more than a look.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

MAX_HEAD_BYTES = 2048
_MAX_KNOWN = 512
_END = b"\r\n\r\n"


class KnownHead(NamedTuple):
    """What was read of a head whose body has a known length, and whose connection lives on."""

    url: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    read: Mapping[str, str]
    """As `read_headers` gives them."""
    num_body: int
    """Bytes."""


class Heads:
    """Those that are known to the connections of one gateway."""

    def __init__(self) -> None:
        self._known: dict[bytes, KnownHead] = {}

    def find(self, head: bytes) -> KnownHead | None:
        """What is known of it."""
        return self._known.get(head)

    def keep(self, head: bytes, known: KnownHead) -> None:
        """Know it from now on."""
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[head] = known


def head_of(data: bytes) -> bytes:
    """The head that `data` begins with; empty where it has none, or a long one."""
    end = data.find(_END, 0, MAX_HEAD_BYTES)
    return data[: end + len(_END)] if end > 0 else b""
