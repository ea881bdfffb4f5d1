"""Frames of the link: a header of 16 bytes, then as many bytes as it says. No sockets here.

Header, little endian: bytes that follow (u32), stream (u32), kind (u8), flags (u8), reserved (u16), deadline
in ms (u32; 0: none). Streams are numbered by the gateway, from 1; each has exactly one last frame, also after
CANCEL.

| kind | from | body |
|---|---|---|
| CHALLENGE, PROOF, WELCOME | both | `handshake` |
| INFER | gateway | tensors (`tensors`); with SLOT: slot, offset, length (u32 each) and the tensors' head |
| GENERATE | gateway | what the replica is to make of it |
| CANCEL | gateway | nothing: nobody waits for the stream; its last frame comes all the same |
| RESULT | replica | `TIMINGS`, then tensors; with SLOT: slot, offset, length and the head, as above |
| REFUSED, FAILED, EXPIRED | replica | text: values were wrong; the model broke; the deadline passed |
| OVERLOADED | replica | u32 ms to try again after, then text |
| PIECES | replica | of many streams: `PIECE` (stream, tokens so far, bytes) and the bytes, repeated |
| GOAWAY | replica | text. Stream 0: it takes no more, and what runs ends; else that one was not begun |
| PING, PONG | both | nothing; a PING is answered with its stream number |
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable, Iterable
from enum import IntEnum
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from eagleray.errors import ServiceError

Buffer = bytes | bytearray | memoryview
"""Flat bytes: of a memoryview, the format is one byte an item."""

HEADER = struct.Struct("<IIBBHI")
HEADER_BYTES = HEADER.size
PLACE = struct.Struct("<III")
"""Slot, offset in it, length: in front of the head where values lie in the ring."""
TIMINGS = struct.Struct("<IIIIHHI")
"""Microseconds in queue, waiting for the batch, inferring, encoding; samples in the batch; 6 bytes of
nothing, so that what follows starts at a multiple of 8."""
PIECE = struct.Struct("<III")
RETRY = struct.Struct("<I")

SLOT = 0x01
"""Flag: the tensors' values lie in the ring."""
SEAL_BYTES = 16
MAX_STREAM = 0xFFFFFFFF
MAX_TEXT_BYTES = 4096
TOO_LARGE = "the answer is too large"
"""How the text of a FAILED begins where a link cannot carry what was computed."""

_READ_BYTES = 128 * 1024
_OWN_BYTES = 16 * 1024
"""A frame that did not come whole and is larger is read into memory of its own, not copied there."""


class FrameError(ServiceError):
    """The other end sent what cannot be right; the connection is to be closed."""


class Kind(IntEnum):
    """What a frame is."""

    LOST = 0
    """Never sent: what callers get where the connection ended before the answer."""
    CHALLENGE = 1
    PROOF = 2
    WELCOME = 3
    INFER = 4
    GENERATE = 5
    CANCEL = 6
    RESULT = 7
    REFUSED = 8
    OVERLOADED = 9
    FAILED = 10
    EXPIRED = 11
    PIECES = 12
    GOAWAY = 13
    PING = 14
    PONG = 15


KINDS = tuple(Kind)


class Timings(NamedTuple):
    """Where a request's time in the replica went, and how many samples were in its batch."""

    queue_us: int = 0
    batch_us: int = 0
    infer_us: int = 0
    encode_us: int = 0
    batch_size: int = 1


class Seal:
    """Tags for the frames of one direction: keyed BLAKE2b over sequence number, header and body."""

    def __init__(self, key: bytes) -> None:
        self._keyed = blake2b(key=key, digest_size=SEAL_BYTES)
        self._next = 0

    def tag(self, header: Buffer, parts: Iterable[Buffer]) -> bytes:
        """The tag of the next frame; each frame has another, so that none can be left out or sent twice."""
        keyed = self._keyed.copy()
        keyed.update(self._next.to_bytes(8, "little"))
        keyed.update(header)
        for part in parts:
            keyed.update(part)
        self._next += 1
        return keyed.digest()


def header(kind: Kind, stream: int, num_bytes: int, *, flags: int = 0, deadline_ms: int = 0) -> bytes:
    """The 16 bytes in front of `num_bytes` others."""
    return HEADER.pack(num_bytes, stream, kind, flags, 0, deadline_ms)


def text_bytes(text: str) -> bytes:
    """UTF-8 of at most `MAX_TEXT_BYTES`."""
    return text.encode(errors="replace")[:MAX_TEXT_BYTES]


def text_of(body: Buffer) -> str:
    """The text that a frame carries, whatever bytes it is made of."""
    return bytes(body[:MAX_TEXT_BYTES]).decode(errors="replace")


OnFrame = Callable[[int, int, int, int, Buffer], None]
"""Takes kind, flags, stream, deadline in ms, and the body, which is the taker's own and stays."""


def _drop(_kind: int, _flags: int, _stream: int, _deadline_ms: int, _body: Buffer) -> None:
    pass


class FrameReader:
    """Cuts what a connection receives into frames.

    Args:
        on_frame: Called for each whole frame, in their order.
        max_bytes: The largest body; a header that says more is an error before anything is kept of it.
        seal: What each frame must be sealed with; None where the connection itself is trusted.
    """

    def __init__(self, on_frame: OnFrame, max_bytes: int, seal: Seal | None = None) -> None:
        self._on_frame, self._seal = on_frame, seal
        self._max_bytes = max_bytes + (SEAL_BYTES if seal else 0)
        self._buffer = bytearray(_READ_BYTES)
        self._view = memoryview(self._buffer)
        self._have = 0
        self._large: memoryview | None = None
        self._large_have = 0

    def stop(self) -> None:
        """Read no more, and let go of the taker: else both are garbage that only a collection finds."""
        self._on_frame = _drop

    def get_buffer(self) -> memoryview:
        """Where the next bytes are to go."""
        if self._large is not None:
            return self._large[self._large_have :]
        return self._view[self._have :]

    def updated(self, num_bytes: int) -> None:
        """So many bytes were put there. Raises: FrameError; nothing after it is read."""
        if self._large is not None:
            self._large_have += num_bytes
            if self._large_have == len(self._large):
                self._finish_large(self._large)
            return
        buffer, end, at = self._buffer, self._have + num_bytes, 0
        unpack, on_frame, seal = HEADER.unpack_from, self._on_frame, self._seal
        while end - at >= HEADER_BYTES:
            size, stream, kind, flags, _, deadline_ms = unpack(buffer, at)
            stop = at + HEADER_BYTES + size
            if stop > end:
                self._check(size, kind)
                break
            if size > self._max_bytes or not 0 < kind < len(KINDS):
                self._check(size, kind)
            body = buffer[at + HEADER_BYTES : stop]
            if seal is not None:
                body = self._opened(buffer[at : at + HEADER_BYTES], body)
            at = stop
            on_frame(kind, flags, stream, deadline_ms, body)
        self._keep(at, end)

    def _keep(self, at: int, end: int) -> None:
        """Move the half frame that is left to where the rest of it will be read."""
        left = end - at
        if left >= HEADER_BYTES:
            size = HEADER.unpack_from(self._buffer, at)[0]
            if size > _OWN_BYTES:
                # numpy's memory is not set to zero first: of 600 KB that would be a tenth of the whole cost.
                self._large = np.empty(HEADER_BYTES + size, np.uint8).data
                self._large[:left] = self._view[at:end]
                self._large_have, self._have = left, 0
                return
        if left and at:
            self._view[:left] = self._view[at:end]
        self._have = left

    def _finish_large(self, frame: memoryview) -> None:
        self._large, self._large_have = None, 0
        _, stream, kind, flags, _, deadline_ms = HEADER.unpack_from(frame)
        body: Buffer = frame[HEADER_BYTES:]
        if self._seal is not None:
            body = self._opened(frame[:HEADER_BYTES], body)
        self._on_frame(kind, flags, stream, deadline_ms, body)

    def _check(self, size: int, kind: int) -> None:
        if size > self._max_bytes:
            raise FrameError(f"a frame of {size} bytes, and the most that was agreed is {self._max_bytes}")
        if not 0 < kind < len(KINDS):
            raise FrameError(f"a frame of kind {kind}, which there is not")

    def _opened(self, head: Buffer, body: Buffer) -> Buffer:
        """The body without its tag, which must be right."""
        assert self._seal is not None
        if len(body) < SEAL_BYTES:
            raise FrameError(f"a frame of {len(body)} bytes has no room for its seal")
        content = memoryview(body)[:-SEAL_BYTES]
        if not hmac.compare_digest(self._seal.tag(head, (content,)), bytes(body[-SEAL_BYTES:])):
            raise FrameError("a frame's seal is wrong: it was changed, sent twice, or made with another key")
        return content
