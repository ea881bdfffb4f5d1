"""What both ends of a link do alike: read frames, write those of one loop tick together, and keep watch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import cast

from eagleray.serving.link.frames import (
    HEADER,
    HEADER_BYTES,
    SEAL_BYTES,
    Buffer,
    FrameError,
    FrameReader,
    Kind,
    Seal,
)
from eagleray.serving.link.handshake import Agreed

log = logging.getLogger(__name__)

_pack = HEADER.pack
_LARGE_BYTES = 16 * 1024
"""Larger parts are handed to the socket as they are; smaller ones are joined first."""
_HIGH_WATER_BYTES = 1 << 20


class Wire(asyncio.BufferedProtocol):
    """One connection whose handshake is over. All of it in its loop.

    Subclasses say what a frame means (`on_frame`), and what follows the frames of one read (`after_read`).
    """

    def __init__(self, agreed: Agreed) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._max_frame_bytes = agreed.max_frame_bytes
        self._seal: Seal | None = agreed.seal_out
        self._reader = FrameReader(self.on_frame, agreed.max_frame_bytes, agreed.seal_in)
        self._out: list[Buffer] = []
        self._out_bytes = 0
        self._has_large = self._will_flush = self._is_paused = False
        self._reason = ""
        self.heard_s = time.monotonic()
        """When bytes last came from the other end."""

    @property
    def is_open(self) -> bool:
        """Whether frames can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(
        self, kind: Kind, stream: int, parts: Sequence[Buffer] = (), *, flags: int = 0, deadline_ms: int = 0
    ) -> None:
        """Put a frame with the frames of this tick. Parts must not change until they are sent.

        Raises:
            FrameError: it is larger than what was agreed; nothing was sent.
        """
        size = sum(map(len, parts))
        if size > self._max_frame_bytes:
            raise FrameError(f"{size} bytes, and a link carries {self._max_frame_bytes} at most")
        out = self._out
        if self._seal is None:
            out.append(_pack(size, stream, kind, flags, 0, deadline_ms))
            out += parts
        else:
            head = _pack(size + SEAL_BYTES, stream, kind, flags, 0, deadline_ms)
            out += (head, *parts, self._seal.tag(head, parts))
        self._out_bytes += size + HEADER_BYTES
        if size > _LARGE_BYTES:
            self._has_large = True
        self.flush_soon()

    def flush_soon(self) -> None:
        """Write with this tick's frames."""
        if not self._will_flush:
            self._will_flush = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what was sent, in one piece."""
        self.before_flush()
        self._will_flush = False
        out, has_large = self._out, self._has_large
        if not out:
            return
        self._out, self._out_bytes, self._has_large = [], 0, False
        self.on_flush()
        transport = self._transport
        # uvloop raises where a closed transport is written to; in a read callback that ended the whole link.
        if transport is None or transport.is_closing():
            return
        if not has_large:
            transport.write(b"".join(out))
            return
        runs: list[Buffer] = []
        small: list[Buffer] = []
        for part in out:
            if len(part) <= _LARGE_BYTES:
                small.append(part)
                continue
            if small:
                runs.append(b"".join(small))
                small = []
            runs.append(part)
        if small:
            runs.append(b"".join(small))
        transport.writelines(runs)

    def num_waiting_bytes(self) -> int:
        """Bytes that were sent and that the kernel has not taken yet."""
        buffered = self._transport.get_write_buffer_size() if self._is_paused and self._transport else 0
        return self._out_bytes + buffered

    def give_up(self, reason: str) -> None:
        """End the connection now; `reason` is for the log and for whoever waits."""
        if not self._reason:
            self._reason = reason
        if self._transport is not None:
            self._transport.abort()

    def on_frame(self, kind: int, flags: int, stream: int, deadline_ms: int, body: Buffer) -> None:
        """One whole frame. Raises: FrameError: it ends the connection."""
        raise NotImplementedError

    def after_read(self) -> None:
        """All frames of one read have been seen."""

    def before_flush(self) -> None:
        """The last chance to send with this tick's frames."""

    def on_flush(self) -> None:
        """Frames of this tick are about to be written."""

    def before_read(self) -> None:
        """Bytes have come."""

    def on_end(self, reason: str) -> None:
        """The connection is over."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Of asyncio."""
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Of asyncio."""
        self.heard_s = time.monotonic()
        self.before_read()
        self._will_flush = True  # no need to ask for it: it comes right after
        try:
            self._reader.updated(nbytes)
            self.after_read()
        except FrameError as error:
            self.give_up(str(error))
        except Exception as error:
            log.exception("a link broke over a frame")
            self.give_up(f"a frame could not be handled ({type(error).__name__}: {error})")
        self.flush()

    def eof_received(self) -> None:
        """Of asyncio: there are no half-open links."""

    def pause_writing(self) -> None:
        """Of asyncio."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Of asyncio."""
        self._is_paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio."""
        self._transport = None
        self._reader.stop()
        self._out, self._out_bytes = [], 0
        self.on_end(self._reason or (f"the connection broke ({exc})" if exc else "the other end closed it"))
