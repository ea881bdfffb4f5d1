"""The replica's end of its links: a thread with a loop of its own, so that nothing else delays an answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import uvloop

from eagleray.errors import ServiceError
from eagleray.serving.link import handshake, sockets
from eagleray.serving.link.calls import Handler
from eagleray.serving.link.frames import FrameError
from eagleray.serving.link.session import Session
from eagleray.serving.link.sockets import ReplicaAddress

log = logging.getLogger(__name__)

MAX_LINKS = 1024
_MAX_GREETINGS = 256
"""Handshakes at once; more are closed, and may try again."""
_HANDSHAKE_S = 5.0
_SILENCE_S = 60.0
"""A gateway pings each second where it has nothing else to say: one silent for so long is gone."""
_SWEEP_S = 5.0
_GOODBYE_S = 1.0
_POLL_S = 0.005
_STOPS = "the replica stops"


class LinkServer:
    """Listens on a unix socket in `folder` and on a TCP port of `host`, and gives a handler what comes.

    Args:
        handler: Its methods are called in the server's loop.
        key: The cluster's 32 bytes.
        folder: Made with mode 0700; may be shared with other replicas of this node.
        host: The node's address, or the loopback's.
        max_frame_bytes: The largest frame taken.
        node: The node's id, published so that its gateways know that they may use the unix socket.
    """

    def __init__(
        self,
        handler: Handler,
        key: bytes,
        *,
        folder: Path,
        host: str,
        max_frame_bytes: int,
        node: str = "",
    ) -> None:
        self._handler, self._key, self._folder, self._host = handler, handshake.check_key(key), folder, host
        self._max_frame_bytes, self._node = max_frame_bytes, node
        self._instance = secrets.token_hex(16)
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._greetings: set[asyncio.Task[None]] = set()
        self._sessions: set[Session] = set()
        self._is_draining = False
        self._work: deque[Callable[[], object]] = deque()
        self._is_woken = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_to_close: asyncio.Event
        self._close_s = 0.0
        self._swept_s = 0.0
        self._num_refused, self._warned_s = 0, -math.inf
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link-server", daemon=True)
        self._path = folder / f"{self._instance[:16]}.sock"

    def start(self) -> ReplicaAddress:
        """Listen, and say where. Raises: ServiceError: it cannot, or others might enter the folder."""
        sockets.private_folder(self._folder)
        sockets.remove_stale(self._folder)
        self._listeners.append(sockets.listen_unix(self._path))
        try:
            listener, tcp = sockets.listen_tcp(self._host)
        except BaseException:
            self._stop_listening()
            raise
        self._listeners.append(listener)
        self._thread.start()
        self._is_ready.wait()
        if self._loop is None:
            self._stop_listening()
            raise ServiceError("a replica's link server could not start its loop; its log says why")
        return {
            "unix": str(self._path),
            "tcp": tcp,
            "instance": self._instance,
            "node": self._node,
            "protocol": handshake.PROTOCOL,
        }

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs. From any thread."""
        return self._thread.is_alive()

    def call_soon(self, work: Callable[[], object]) -> None:
        """Have the loop do it; from any thread. Many calls cost one wake-up. After `close` none is done."""
        self._work.append(work)
        if not self._is_woken and self._loop is not None:
            self._is_woken = True
            try:
                self._loop.call_soon_threadsafe(self._do_work)
            except RuntimeError:  # the loop is closed
                self._work.clear()

    def drain(self) -> None:
        """Take no more requests and no more links; what runs ends. From any thread; returns at once."""
        self.call_soon(self._drain)

    def close(self, timeout_s: float) -> None:
        """Drain, wait so long for what runs, then end all links and the thread. From any other thread."""
        if not self._thread.is_alive():
            self._stop_listening()
            return

        def begin() -> None:
            self._drain()
            self._close_s = time.monotonic() + timeout_s
            self._is_to_close.set()

        self.call_soon(begin)
        self._thread.join(timeout_s + 5 * _GOODBYE_S)
        if self._thread.is_alive():
            log.error("a replica's link server did not end: its handler blocks the loop")

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        finally:
            self._is_ready.set()

    async def _serve(self) -> None:
        self._is_to_close = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        for listener in self._listeners:
            self._accepting.append(self._loop.create_task(self._accept(listener)))
        self._do_work()  # of before the start
        self._is_ready.set()
        while not self._is_to_close.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_to_close.wait(), _SWEEP_S)
            self._sweep()
        while time.monotonic() < self._close_s and any(session.num_calls for session in self._sessions):
            await asyncio.sleep(_POLL_S)
        await self._end_sessions()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        greetings: set[asyncio.Task[None]] = (
            set()
        )  # of each listener: strangers on TCP leave room on the other
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors left, say
                log.warning("a link could not be accepted: %s", error)
                await asyncio.sleep(0.1)
                continue
            if len(greetings) >= _MAX_GREETINGS or len(self._sessions) >= MAX_LINKS:
                sock.close()
                continue
            task = loop.create_task(self._greet(sock))
            for tasks in (greetings, self._greetings):
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    async def _greet(self, sock: socket.socket) -> None:
        """Shake hands, and make a session of it."""
        try:
            sockets.prepare(sock)
            async with asyncio.timeout(_HANDSHAKE_S):
                agreed = await handshake.serve(
                    sock, self._key, instance=self._instance, max_frame_bytes=self._max_frame_bytes
                )
            session = Session(agreed, self._handler, self._on_over, self._is_idle)
            if self._is_draining:
                session.drain(_STOPS)
            self._sessions.add(session)  # first: it may be over before this task goes on
            try:
                await asyncio.get_running_loop().connect_accepted_socket(lambda: session, sock)
            except BaseException:
                self._sessions.discard(session)
                raise
        except (handshake.Gone, ConnectionError) as error:
            log.debug("a gateway left during the handshake: %s", error)
            sock.close()
        except (FrameError, TimeoutError, OSError) as error:
            self._warn(str(error) or "no handshake in time")
            sock.close()
        except BaseException:
            sock.close()
            raise

    def _is_idle(self) -> bool:
        """Whether nobody's call is under way."""
        return not any(session.num_calls for session in self._sessions)

    def _warn(self, reason: str) -> None:
        """Once a second at most: whoever can connect could fill the disk."""
        now_s = time.monotonic()
        self._num_refused += 1
        if now_s - self._warned_s >= 1.0:
            log.warning("%d links were refused, the last one: %s", self._num_refused, reason)
            self._num_refused, self._warned_s = 0, now_s

    def _on_over(self, session: Session, reason: str) -> None:
        self._sessions.discard(session)
        log.info("a gateway's link ended: %s", reason)

    def _do_work(self) -> None:
        self._is_woken = False
        for _ in range(len(self._work)):
            try:
                self._work.popleft()()
            except Exception:
                log.exception("work for the link's loop failed")

    def _drain(self) -> None:
        if self._is_draining:
            return
        self._is_draining = True
        for task in self._accepting:
            task.cancel()
        self._stop_listening()
        for session in self._sessions:
            session.drain(_STOPS)

    def _sweep(self) -> None:
        now_s = time.monotonic()
        # A loop that was itself held up has not read yet what came meanwhile.
        is_late, self._swept_s = now_s - self._swept_s > 2 * _SWEEP_S, now_s
        if is_late:
            return
        gone_s = now_s - _SILENCE_S
        for session in list(self._sessions):
            if session.heard_s < gone_s:
                session.give_up(f"nothing came from the gateway for {_SILENCE_S:.0f} s")

    async def _end_sessions(self) -> None:
        for task in self._greetings:
            task.cancel()
        for session in list(self._sessions):
            session.say_goodbye()
        until_s = time.monotonic() + _GOODBYE_S
        while self._sessions and time.monotonic() < until_s:
            await asyncio.sleep(_POLL_S)
        for session in list(self._sessions):
            session.give_up(_STOPS)
        await asyncio.sleep(0)

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners = []
        self._path.unlink(missing_ok=True)
