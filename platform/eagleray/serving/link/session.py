"""One gateway's connection, as the replica sees it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence

from eagleray.serving.link.calls import Call, GenerateCall, Handler, InferCall
from eagleray.serving.link.frames import (
    KINDS,
    PIECE,
    PLACE,
    RETRY,
    SLOT,
    TOO_LARGE,
    Buffer,
    FrameError,
    Kind,
    text_bytes,
)
from eagleray.serving.link.handshake import Agreed
from eagleray.serving.link.waking import Awake
from eagleray.serving.link.wire import Wire

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 4096
_HELD_BYTES = 32 << 20
"""So much, and four of the largest frames, a gateway may have in this process, of requests or of answers."""
_BUSY_RETRY_MS = 100
_PIECES_BYTES = 48 * 1024
"""A frame of pieces is closed when it has so much."""
# An attribute of an enumeration costs Python 3.11 five times what a global does.
_GENERATE, _CANCEL = Kind.GENERATE, Kind.CANCEL
_BEGINNINGS = frozenset({Kind.INFER, Kind.GENERATE})


class Session(Wire):
    """Makes calls of frames, and frames of what became of the calls. All of it in the server's loop."""

    def __init__(
        self,
        agreed: Agreed,
        handler: Handler,
        on_over: Callable[[Session, str], None],
        is_idle: Callable[[], bool],
    ) -> None:
        super().__init__(agreed)
        self._handler, self._on_over, self._ring = handler, on_over, agreed.ring
        self._calls: dict[int, Call] = {}
        # While one is worked on, whosever it is, the model's thread wants the interpreter.
        self._is_idle, self._awake = is_idle, Awake(self._loop, is_idle)
        self._held_bytes = 0
        self._most_bytes = 4 * agreed.max_frame_bytes + _HELD_BYTES
        self._pieces: list[Buffer] = []
        self._pieces_bytes = 0
        self._is_draining, self._drain_reason = False, ""

    @property
    def num_calls(self) -> int:
        """Calls that were not ended."""
        return len(self._calls)

    def drain(self, reason: str) -> None:
        """Take no more, and say so; what runs ends."""
        if not self._is_draining:
            self._is_draining, self._drain_reason = True, reason
            if self.is_open:
                self._say_draining()

    def say_goodbye(self) -> None:
        """Close the connection when all that was sent is written."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio."""
        super().connection_made(transport)
        if self._is_draining:
            self._say_draining()

    def whole_slot(self, slot: int) -> memoryview:
        """For an answer to the call that came in it."""
        assert self._ring is not None
        return self._ring.whole(slot)

    def finish(self, call: Call, kind: Kind, parts: Sequence[Buffer], flags: int) -> None:
        """A call's: its last frame."""
        if self._pieces:
            self._send_pieces()  # in front of the end that follows them
        del self._calls[call.stream]
        self._held_bytes -= call.num_bytes
        if call.slot >= 0 and self._ring is not None:
            self._ring.end(call.slot)
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        try:
            self.send(kind, call.stream, parts, flags=flags)
        except FrameError as error:
            self.send(Kind.FAILED, call.stream, (text_bytes(f"{TOO_LARGE}: {error}"),))
        if self._is_paused:
            self._check_reading()

    def piece(self, call: GenerateCall, piece: bytes, tokens: int) -> None:
        """A call's: goes out with the others of this tick."""
        size = PIECE.size + len(piece)
        if size > self._max_frame_bytes:
            call.fail(f"a piece of {len(piece)} bytes is more than a link carries")
            return
        if self._pieces_bytes and self._pieces_bytes + size > min(_PIECES_BYTES, self._max_frame_bytes):
            self._send_pieces()
        self._pieces += (PIECE.pack(call.stream, min(tokens, 0xFFFFFFFF), len(piece)), piece)
        self._pieces_bytes += size
        self.flush_soon()

    def before_flush(self) -> None:
        """As Wire."""
        if self._pieces:
            self._send_pieces()
            self._check_reading()

    def on_frame(self, kind: int, flags: int, stream: int, deadline_ms: int, body: Buffer) -> None:
        """As Wire."""
        if kind in _BEGINNINGS:
            if stream == 0 or stream in self._calls:
                raise FrameError(f"stream {stream} was begun, and is not free")
            is_full = self._held_bytes + len(body) > self._most_bytes or len(self._calls) >= MAX_IN_FLIGHT
            if is_full or self._is_draining:
                self._send_away(stream)
            else:
                self._begin(kind, flags, stream, deadline_ms, body)
        elif kind == _CANCEL:
            self._cancel(stream)
        elif kind == Kind.PING:
            self.send(Kind.PONG, stream)
            self._check_reading()
        elif kind != Kind.PONG:
            raise FrameError(f"a {KINDS[kind].name} from a gateway")

    def before_read(self) -> None:
        """As Wire."""
        self._awake.came()

    def on_flush(self) -> None:
        """As Wire."""
        if not self._calls and self._is_idle():
            self._awake.expect()

    def after_read(self) -> None:
        """As Wire."""
        try:
            self._handler.flush()
        except Exception:
            log.exception("the handler's flush failed")

    def on_end(self, reason: str) -> None:
        """As Wire."""
        calls, self._calls = list(self._calls.values()), {}
        for call in calls:
            call.drop()
            self._tell_cancelled(call)
        if self._ring is not None:
            self._ring.close()
        self._on_over(self, reason)

    def _say_draining(self) -> None:
        self.send(Kind.GOAWAY, 0, (text_bytes(self._drain_reason),))

    def _begin(self, kind: int, flags: int, stream: int, deadline_ms: int, body: Buffer) -> None:
        received_s = self.heard_s
        deadline_s = received_s + deadline_ms / 1000 if deadline_ms else math.inf
        if kind == _GENERATE:
            call = GenerateCall(self, stream, received_s, deadline_s, bytes(body))
        elif flags & SLOT:
            if self._ring is None or len(body) < PLACE.size:
                raise FrameError("a request in a slot, and there is no ring")
            slot, offset, length = PLACE.unpack_from(body)
            call = InferCall(self, stream, received_s, deadline_s, self._ring.begin(slot, offset, length))
            call.put_in_slot(slot, bytes(body[PLACE.size :]), offset + length)
        else:
            call = InferCall(self, stream, received_s, deadline_s, body)
        self._calls[stream] = call
        self._held_bytes += call.num_bytes
        try:
            if isinstance(call, InferCall):
                self._handler.infer(call)
            else:
                self._handler.generate(call)
        except Exception as error:
            log.exception("the handler did not take a call")
            call.fail(f"{type(error).__name__}: {error}")

    def _send_away(self, stream: int) -> None:
        """Answer a call that may not begin."""
        if self._is_draining:
            self.send(Kind.GOAWAY, stream, (b"the replica takes no more requests",))
        else:
            text = f"the replica holds {len(self._calls)} requests of this gateway, {self._held_bytes} bytes"
            self.send(Kind.OVERLOADED, stream, (RETRY.pack(_BUSY_RETRY_MS), text.encode()))
        self._check_reading()

    def _cancel(self, stream: int) -> None:
        call = self._calls.get(stream)  # none: its end is on the way
        if call is not None and not call.is_cancelled:
            call.is_cancelled = True
            self._tell_cancelled(call)

    def _tell_cancelled(self, call: Call) -> None:
        try:
            self._handler.cancel(call)
        except Exception:
            log.exception("the handler's cancel failed")

    def _send_pieces(self) -> None:
        pieces, self._pieces, self._pieces_bytes = self._pieces, [], 0
        if self.is_open:
            self.send(Kind.PIECES, 0, (b"".join(pieces),))

    def _check_reading(self) -> None:
        """Give up a gateway that asks and does not read: what waits for it is memory of this process."""
        if self._is_paused and self.num_waiting_bytes() > self._most_bytes:
            self.give_up(f"the gateway left {self.num_waiting_bytes()} bytes of answers unread")
