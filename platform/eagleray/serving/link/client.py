"""The gateway's end of a link: requests by callbacks, without a Task and without a Future for each."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence

from eagleray.serving.link import handshake, sockets
from eagleray.serving.link.answers import Answer, OnAnswer
from eagleray.serving.link.frames import (
    KINDS,
    MAX_STREAM,
    PIECE,
    PLACE,
    RETRY,
    SLOT,
    TIMINGS,
    Buffer,
    FrameError,
    Kind,
    Timings,
    text_of,
)
from eagleray.serving.link.handshake import Agreed, LinkRefused
from eagleray.serving.link.ring import Ring, RingOptions, Slot
from eagleray.serving.link.sockets import Address
from eagleray.serving.link.waking import Awake
from eagleray.serving.link.wire import Wire

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 16_384
_WAITING_BYTES = 8 << 20
"""So much, and four of the largest frames, may wait for a replica that reads slowly; more is refused."""
_BUSY_RETRY_S = 0.1
_LATE_S = 0.1
# An attribute of an enumeration costs Python 3.11 five times what a global does.
_INFER, _RESULT, _PIECES = Kind.INFER, Kind.RESULT, Kind.PIECES


_TIMINGS_BYTES = TIMINGS.size
# Bound once, for every answer: by their classes they take twice as long.
_unpack_timings, _timings, _answer = TIMINGS.unpack_from, Timings._make, Answer._make

OnPiece = Callable[[bytes, int], None]
"""Takes a piece, and how many tokens the model has made with it."""


class Link(Wire):
    """One connection to one replica. Every method, and every callback, in its loop.

    Each request's callback is called exactly once, and never from inside the method that takes it.
    """

    def __init__(
        self,
        agreed: Agreed,
        instance: str,
        *,
        ring: Ring | None,
        on_lost: Callable[[Link, str], None],
        ping_s: float,
        silence_s: float,
    ) -> None:
        super().__init__(agreed)
        self.instance, self._ring, self._on_lost = instance, ring, on_lost
        if ring is not None:
            ring.forget_fd()
        self._ping_s, self._silence_s = ping_s, silence_s
        self._calls: dict[int, OnAnswer] = {}
        self._awake = Awake(self._loop, lambda: self._calls)
        self._slots: dict[int, Slot] = {}
        self._pieces: dict[int, OnPiece] = {}
        self._stream = 0
        self._most_waiting_bytes = 4 * agreed.max_frame_bytes + _WAITING_BYTES
        self.is_draining = False
        """Whether the replica said that it takes no more."""
        self._looked_s = time.monotonic()
        self._has_spoken = False
        """Since the last look."""
        self._watch = self._loop.call_later(ping_s, self._look)

    @property
    def in_flight(self) -> int:
        """Streams that the replica has not ended yet, cancelled ones too."""
        return len(self._calls)

    @property
    def takes_requests(self) -> bool:
        """Whether it is worth sending one."""
        transport = self._transport
        return transport is not None and not self.is_draining and not transport.is_closing()

    @property
    def max_frame_bytes(self) -> int:
        """What both ends have agreed on."""
        return self._max_frame_bytes

    def infer(self, parts: Sequence[Buffer], deadline_ms: int, on_answer: OnAnswer) -> int:
        """Send tensors as `tensors.write` gives them; the stream.

        They must not change until the replica's answer, which a cancelled request's owner does not learn of.
        """
        return self._begin(_INFER, parts, deadline_ms, on_answer)

    def infer_in_slot(  # noqa: PLR0917
        self, slot: Slot, offset: int, length: int, head: bytes, deadline_ms: int, on_answer: OnAnswer
    ) -> int:
        """Send tensors whose values lie in a slot that `take_slot` gave; the stream.

        The slot is the link's from here on: it is free when the stream has ended, or with `Answer.release`.
        With an `offset` that is a multiple of 64 the replica's arrays are aligned.
        """
        if not slot.belongs_to(self._ring):
            raise ValueError("the slot is of another link, or was given back")
        if not 0 <= offset <= offset + length <= len(slot.view):
            raise ValueError(f"bytes {offset} to {offset + length} of a slot of {len(slot.view)}")
        place = PLACE.pack(slot.index, offset, length)
        stream = self._begin(_INFER, (place, head), deadline_ms, on_answer, flags=SLOT)
        self._slots[stream] = slot
        return stream

    def generate(self, request: bytes, deadline_ms: int, on_piece: OnPiece, on_end: OnAnswer) -> int:
        """Send a request for text; its pieces come as they are made, then its end; the stream."""
        stream = self._begin(Kind.GENERATE, (request,), deadline_ms, on_end)
        self._pieces[stream] = on_piece
        return stream

    def cancel(self, stream: int) -> None:
        """Nobody waits for it any more: its callbacks are not called. It counts until the replica ends it."""
        if stream not in self._calls or self._calls[stream] is _nobody:
            return
        self._calls[stream] = _nobody
        if stream in self._pieces:
            self._pieces[stream] = _no_piece
        if self.is_open:
            self.send(Kind.CANCEL, stream)

    def take_slot(self) -> Slot | None:
        """A free slot of this connection's ring; None: send through the socket."""
        return self._ring.take() if self._ring is not None else None

    def close(self) -> None:
        """End the connection; what is in flight is LOST."""
        self.give_up("this gateway closed it")

    def on_frame(self, kind: int, flags: int, stream: int, deadline_ms: int, body: Buffer) -> None:
        """As Wire."""
        if kind == _RESULT:
            if stream not in self._calls:
                raise FrameError(f"an answer for stream {stream}, which nobody asked for")
            if len(body) < _TIMINGS_BYTES:
                raise FrameError(f"a result of {len(body)} bytes has no timings")
            timings, rest = _timings(_unpack_timings(body)[:5]), memoryview(body)[_TIMINGS_BYTES:]
            if flags & SLOT:
                self._end(stream, self._in_slot(stream, timings, rest))
            else:
                self._end(stream, _answer((_RESULT, rest, timings, "", 0.0, b"", None)))
        elif kind == _PIECES:
            self._take_pieces(body)
        elif kind in _ENDS:
            self._take_end(Kind(kind), stream, body)
        elif kind == Kind.PING:
            self.send(Kind.PONG, stream)
        elif kind != Kind.PONG:
            raise FrameError(f"a {KINDS[kind].name} from a replica")

    def before_read(self) -> None:
        """As Wire."""
        self._awake.came()

    def on_flush(self) -> None:
        """As Wire."""
        self._has_spoken = True
        if self._calls:
            self._awake.expect()

    def on_end(self, reason: str) -> None:
        """As Wire."""
        self._watch.cancel()
        if self._ring is not None:
            self._ring.close()
        try:
            self._on_lost(self, reason)
        except Exception:
            log.exception("on_lost failed")
        lost = Answer(Kind.LOST, message=f"the link to the replica was lost: {reason}")
        for stream in list(self._calls):
            self._end(stream, lost)

    def _next_stream(self) -> int:
        stream = self._stream
        while stream in self._calls or not stream:
            stream = stream % MAX_STREAM + 1
        return stream

    def _begin(
        self,
        kind: Kind,
        parts: Sequence[Buffer],
        deadline_ms: int,
        on_answer: OnAnswer,
        *,
        flags: int = 0,
    ) -> int:
        stream = self._stream % MAX_STREAM + 1
        if stream in self._calls:
            stream = self._next_stream()
        self._stream = stream
        refusal = self._refusal()
        if not 0 <= deadline_ms <= MAX_STREAM:
            deadline_ms = MAX_STREAM if deadline_ms > 0 else 1
        if refusal is None:
            try:
                # Not written before this tick's end, when an answer finds its taker.
                self.send(kind, stream, parts, flags=flags, deadline_ms=deadline_ms)
            except FrameError as error:
                refusal = Answer(Kind.REFUSED, message=str(error))
        self._calls[stream] = on_answer
        if refusal is not None:
            self._loop.call_soon(self._end, stream, refusal)
        return stream

    def _refusal(self) -> Answer | None:
        """Why nothing can be sent now."""
        transport = self._transport
        if transport is None or transport.is_closing() or self.is_draining:
            return Answer(Kind.GOAWAY, message="the link to the replica takes no more requests")
        if len(self._calls) >= MAX_IN_FLIGHT:
            return Answer(
                Kind.OVERLOADED, message=f"{MAX_IN_FLIGHT} requests in flight", retry_after_s=_BUSY_RETRY_S
            )
        waiting_bytes = self.num_waiting_bytes() if self._is_paused else self._out_bytes
        if waiting_bytes > self._most_waiting_bytes:
            message = f"{waiting_bytes} bytes wait for a replica that does not read them"
            return Answer(Kind.OVERLOADED, message=message, retry_after_s=_BUSY_RETRY_S)
        return None

    def _in_slot(self, stream: int, timings: Timings, rest: memoryview) -> Answer:
        slot = self._slots.get(stream)
        if slot is None or len(rest) < PLACE.size:
            raise FrameError("a result in a slot for a request that was not in one")
        index, offset, length = PLACE.unpack_from(rest)
        if index != slot.index or offset + length > len(slot.view):
            raise FrameError(f"a result in bytes {offset} to {offset + length} of slot {index}, not its own")
        del self._slots[stream]
        values = slot.view[offset : offset + length]
        if self._calls[stream] is _nobody:
            slot.release()
        return Answer(_RESULT, values, timings, head=bytes(rest[PLACE.size :]), slot=slot)

    def _take_end(self, kind: Kind, stream: int, body: Buffer) -> None:
        if kind == Kind.GOAWAY and stream == 0:
            self.is_draining = True
            return
        if stream not in self._calls:
            raise FrameError(f"a {kind.name} for stream {stream}, which nobody asked for")
        retry_after_s = 0.0
        if kind == Kind.OVERLOADED:
            if len(body) < RETRY.size:
                raise FrameError("an OVERLOADED without a time")
            retry_after_s, body = RETRY.unpack_from(body)[0] / 1000, body[RETRY.size :]
        self._end(stream, Answer(kind, message=text_of(body), retry_after_s=retry_after_s))

    def _take_pieces(self, body: Buffer) -> None:
        at, end, data = 0, len(body), bytes(body)
        while at < end:
            if end - at < PIECE.size:
                raise FrameError("half a piece")
            stream, tokens, size = PIECE.unpack_from(data, at)
            at += PIECE.size
            if size > end - at:
                raise FrameError(f"a piece of {size} bytes, and {end - at} are there")
            on_piece = self._pieces.get(stream)
            if on_piece is None:
                raise FrameError(f"a piece for stream {stream}, which nobody asked for")
            try:
                on_piece(data[at : at + size], tokens)
            except Exception:
                log.exception("a taker of pieces failed")
                self.cancel(stream)
            at += size

    def _end(self, stream: int, answer: Answer) -> None:
        on_answer = self._calls.pop(stream, None)
        if self._pieces:
            self._pieces.pop(stream, None)
        if self._slots and (slot := self._slots.pop(stream, None)) is not None:
            if answer.is_for_another and on_answer is not _nobody:
                answer = answer._replace(slot=slot)  # its bytes are wanted for another try
            else:
                slot.release()
        if on_answer is None:
            return
        try:
            on_answer(answer)
        except Exception:
            log.exception("a taker of answers failed")

    def _look(self) -> None:
        """Ask a replica that has been silent, and give up one that stays so.

        One that only ever speaks, as in a long text, is asked too: it gives up who says nothing.
        """
        now_s = time.monotonic()
        # A loop that was itself held up runs its timers first: what came meanwhile is not read yet.
        is_late = now_s - self._looked_s > 2 * self._ping_s + _LATE_S
        self._looked_s = now_s
        silent_s = now_s - self.heard_s
        if silent_s >= self._silence_s and not is_late:
            self.give_up(f"nothing came from the replica for {silent_s:.1f} s, though it was asked")
            return
        if (silent_s >= self._ping_s or not self._has_spoken) and self.is_open:
            self.send(Kind.PING, 0)
        self._has_spoken = False
        self._watch = self._loop.call_later(self._ping_s, self._look)


_ENDS = frozenset({Kind.REFUSED, Kind.OVERLOADED, Kind.FAILED, Kind.EXPIRED, Kind.GOAWAY})


def _nobody(_answer: Answer) -> None:
    """Takes the answer of a cancelled request."""


def _no_piece(_piece: bytes, _tokens: int) -> None:
    """Takes the pieces of a cancelled request."""


async def connect(
    address: Address,
    key: bytes,
    *,
    instance: str,
    max_frame_bytes: int,
    ring: RingOptions | None,
    on_lost: Callable[[Link, str], None],
    ping_s: float = 1.0,
    silence_s: float = 10.0,
    timeout_s: float = 5.0,
) -> Link:
    """A link whose handshake is over.

    Args:
        address: Where the replica listens.
        key: The cluster's 32 bytes.
        instance: The replica that it must be; "" for any.
        max_frame_bytes: The most that either end takes in one frame.
        ring: Shared memory to hand over, on a unix socket; None, and on TCP: all goes through the socket.
        on_lost: Called once with the reason, when the connection ends, before what was in flight is LOST.
        ping_s: A replica silent for so long is asked.
        silence_s: A replica silent for so long is lost.
        timeout_s: For connecting and shaking hands.

    Raises:
        LinkRefused: nobody listens, another replica does, or it has not the key.
    """
    handshake.check_key(key)
    try:
        async with asyncio.timeout(timeout_s):
            sock = await sockets.reach(address)
            shared: Ring | None = None
            try:
                shared = Ring(ring) if ring is not None and sockets.is_unix(address) else None
                agreed, found = await handshake.greet(
                    sock, key, instance=instance, max_frame_bytes=max_frame_bytes, ring=shared
                )

                def link() -> Link:
                    return Link(
                        agreed, found, ring=shared, on_lost=on_lost, ping_s=ping_s, silence_s=silence_s
                    )

                return await _over(sock, link)
            except BaseException:
                sock.close()
                if shared is not None:
                    shared.close()
                raise
    except TimeoutError:
        raise LinkRefused(f"{address} did not answer the handshake within {timeout_s} s") from None
    except (OSError, ValueError) as error:
        raise LinkRefused(f"{address} cannot be reached: {error}") from error


async def _over(sock: socket.socket, link: Callable[[], Link]) -> Link:
    """The link, over a socket on which the handshake is done."""
    loop = asyncio.get_running_loop()
    create = loop.create_unix_connection if sock.family == socket.AF_UNIX else loop.create_connection
    return (await create(link, sock=sock))[1]
