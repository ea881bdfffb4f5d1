"""A replica that has the cluster's key and then says what a test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

from eagleray.serving.gateway.thread import LoopThread
from eagleray.serving.link import handshake
from eagleray.serving.link.frames import HEADER, PIECE, TIMINGS, Buffer, Kind, header
from eagleray.serving.link.sockets import ReplicaAddress
from support.linked import LINKS, NODE
from support.links import KEY

Say = Callable[[Kind, int, bytes], bytes | None]
"""What it says to a request; None: nothing at all."""


def frame(kind: int, stream: int, body: bytes = b"", *, flags: int = 0, size: int | None = None) -> bytes:
    """A frame, that says it has `size` bytes."""
    return HEADER.pack(len(body) if size is None else size, stream, kind, flags, 0, 0) + body


def result(stream: int, *parts: Buffer, flags: int = 0) -> bytes:
    """The frame of an answer."""
    return frame(Kind.RESULT, stream, b"".join([TIMINGS.pack(0, 0, 0, 0, 1, 0, 0), *parts]), flags=flags)


def pieces(stream: int, *texts: bytes) -> bytes:
    """The frame of pieces of a text."""
    body = b"".join(PIECE.pack(stream, number, len(text)) + text for number, text in enumerate(texts, 1))
    return frame(Kind.PIECES, 0, body)


class BrokenReplica:
    """Listens on a unix socket in `folder`, in a thread of its own; `say` may be changed at any time.

    Or on TCP, where it does not seal what it says.
    """

    def __init__(self, folder: Path, say: Say, *, is_tcp: bool = False) -> None:
        self.say, self._is_tcp = say, is_tcp
        self.heard: list[tuple[Kind, int]] = []
        """Kinds and streams, but for pings."""
        self.closes = False
        """Whether the connection ends with what it says."""
        self.num_links = 0
        """Since the start."""
        self._path = folder / f"broken-{id(self):x}.sock"
        self._thread = LoopThread("broken")
        self._listener = socket.socket(socket.AF_INET if is_tcp else socket.AF_UNIX, socket.SOCK_STREAM)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    def start(self) -> ReplicaAddress:
        """Listen, and say where."""
        self._listener.bind(("127.0.0.1", 0) if self._is_tcp else str(self._path))
        self._listener.listen()
        self._listener.setblocking(False)
        self._accepting = self._thread.submit(self._accept())
        unix = "" if self._is_tcp else str(self._path)
        tcp = f"127.0.0.1:{self._listener.getsockname()[1]}" if self._is_tcp else "127.0.0.1:1"
        return {
            "unix": unix, "tcp": tcp, "instance": f"{id(self):032x}", "node": NODE,
            "protocol": handshake.PROTOCOL,
        }  # fmt: skip

    def hang_up(self) -> None:
        """End all connections; others may be made."""
        self._thread._loop.call_soon_threadsafe(lambda: [writer.close() for writer in self._writers])

    def close(self, timeout_s: float = 0) -> None:
        """End all connections, and the thread."""
        self._thread.stop()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            task = loop.create_task(self._serve(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        agreed = await handshake.serve(
            sock, KEY, instance=f"{id(self):032x}", max_frame_bytes=LINKS["max_frame_bytes"]
        )
        dial = asyncio.open_connection if self._is_tcp else asyncio.open_unix_connection
        reader, writer = await dial(sock=sock)
        self.num_links += 1
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self._answer(reader, writer):
                pass
        writer.close()
        self._writers.discard(writer)
        if agreed.ring is not None:
            agreed.ring.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Take a frame; whether there may be another one."""
        size, stream, number, *_ = HEADER.unpack(await reader.readexactly(HEADER.size))
        kind, body = Kind(number), await reader.readexactly(size)
        if kind == Kind.PING:
            writer.write(header(Kind.PONG, stream, 0))
            return True
        self.heard.append((kind, stream))
        if kind not in (Kind.INFER, Kind.GENERATE):
            return True
        said = self.say(kind, stream, body)
        if said is not None:
            writer.write(said)
            await writer.drain()
        return not self.closes
