"""Large bodies of the fast lane: read from the client's socket to where the replica reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import httptools

from eagleray.protocol.tensors import datatype_of
from eagleray.serving.gateway.line import Line, send
from eagleray.serving.link.answers import OnAnswer
from eagleray.serving.link.client import Link
from eagleray.serving.link.frames import Buffer
from eagleray.serving.link.retries import Request
from eagleray.serving.link.ring import MIN_RING_BYTES, Slot
from eagleray.serving.link.tensors import ALIGN, TensorSpec, head_of

if TYPE_CHECKING:
    from eagleray.protocol.infer import InferRequest
    from eagleray.serving.gateway.lane import LaneFace
    from eagleray.serving.gateway.lane_call import LaneCall

_LEAST_LEFT_BYTES = 16 * 1024
"""What is left of a body in the socket: less is copied sooner than the protocol is changed."""
_SCRAPS_BYTES = 64 * 1024
_MOST_PARTS = 1024
"""Of a body as it came. One that comes by the socket's own pieces has fewer."""
_MOST_DIGITS = 18


def gather(parts: list[bytes | bytearray], body: bytes) -> None:
    """Add what came of a body; of many parts one is made, for each takes 60 bytes beside its own."""
    parts.append(body)
    if len(parts) >= _MOST_PARTS:
        first = parts[0]
        whole = first if isinstance(first, bytearray) else bytearray(first)
        for part in parts[1:]:
            whole += part
        parts[:] = [whole]


class SlotBody(NamedTuple):
    """A whole body in a slot."""

    link: Link
    slot: Slot
    start: int
    length: int

    @property
    def view(self) -> memoryview:
        """Its bytes."""
        return self.slot.view[self.start : self.start + self.length]


def room_for(line: Line | None, num_bytes: int, header: str, num_left: int) -> SlotBody | None:
    """A slot for a body, of which so much has not come; None: it is read as others.

    `header` says where its JSON ends; the values behind that begin at a multiple of 64 there.
    """
    if line is None or num_left < _LEAST_LEFT_BYTES or num_bytes < MIN_RING_BYTES:
        return None
    if not header.isdecimal() or len(header) > _MOST_DIGITS or not 0 < int(header) < num_bytes:
        return None
    link = line.pool.choose()
    slot = link.take_slot() if link is not None else None
    if link is None or slot is None:
        return None
    start = -int(header) % ALIGN
    if start + num_bytes > len(slot.view):
        slot.release()
        return None
    return SlotBody(link, slot, start, num_bytes)


def send_from(  # noqa: PLR0917
    line: Line, body: SlotBody, request: InferRequest, header: str, deadline_ms: int, take: OnAnswer
) -> tuple[Request | None, SlotBody | None]:
    """The request on its way, with its values where they are or as others are; and `body` where it is kept.

    None: no link carries it.
    """
    sent = _send_in_place(line, body, request, header, deadline_ms, take)
    if sent is not None:
        return sent, None
    return send(line.pool, request.inputs, deadline_ms, take, is_lent=True), body


def _send_in_place(  # noqa: PLR0917
    line: Line, body: SlotBody, request: InferRequest, header: str, deadline_ms: int, take: OnAnswer
) -> Request | None:
    """The request, whose values the replica reads where they are, and whose slot is its link's from here on.

    None: it is to be sent as others are.
    """
    if not body.link.takes_requests or len(request.inputs) != 1:
        return None
    [(name, array)] = request.inputs.items()
    begin = body.length - array.nbytes
    if array.dtype.hasobject or begin != int(header):
        return None
    spec = TensorSpec(name, datatype_of(array), array.shape, array.nbytes)
    offset = body.start + begin
    return line.pool.infer_in_slot(
        body.link, body.slot, offset, array.nbytes, head_of([spec]), deadline_ms, take
    )


class Filler(asyncio.BufferedProtocol):
    """Takes a connection's place while a body comes, and gives it back behind the body's last byte.

    The parser does not see these bytes: a new one reads the next request.
    """

    def __init__(self, face: LaneFace, call: LaneCall, body: SlotBody, parts: Sequence[Buffer]) -> None:
        """Args: parts: What has come of the body."""
        self._face, self._call, self._transport = face, call, face.transport
        self._body: SlotBody | None = body
        self._left = body.length
        self._view = body.view
        self._scraps: memoryview | None = None
        for part in parts:
            self._view[: len(part)] = part
            self._advance(len(part))

    def begin(self) -> None:
        """Read from here on."""
        self._take_over(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Of asyncio."""
        if self._call.is_over and self._body is not None:
            self._let_go()
        if self._scraps is not None:
            return self._scraps[: self._left]
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Of asyncio."""
        self._advance(nbytes)
        if self._scraps is not None:
            self._face.leave_unread(nbytes)
        if self._left:
            return
        body, self._body = self._body, None
        if body is not None and not self._call.is_over:
            self._call.fill(body)
        elif body is not None:
            body.slot.release()
        face = self._face
        if not self._transport.is_closing():
            self._take_over(face)
        face.parser = httptools.HttpRequestParser(face)
        face.on_message_complete()

    def eof_received(self) -> bool | None:
        """Of asyncio."""
        return self._face.eof_received()

    def pause_writing(self) -> None:
        """Of asyncio."""
        self._face.pause_writing()

    def resume_writing(self) -> None:
        """Of asyncio."""
        self._face.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio."""
        self._let_go()
        self._face.connection_lost(exc)

    def _advance(self, num_bytes: int) -> None:
        self._left -= num_bytes
        if self._scraps is None:
            self._view = self._view[num_bytes:]

    def _let_go(self) -> None:
        """The call has ended without its body: what still comes is not kept."""
        body, self._body = self._body, None
        if body is not None:
            self._view = memoryview(b"")
            self._scraps = memoryview(bytearray(_SCRAPS_BYTES))
            body.slot.release()

    def _take_over(self, protocol: asyncio.BaseProtocol) -> None:
        # uvloop reads in another way for a BufferedProtocol, and changes it when reading begins.
        self._transport.pause_reading()
        self._transport.set_protocol(protocol)
        self._transport.resume_reading()
