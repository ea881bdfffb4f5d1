"""`Gateway`: the HTTP server of one ingress, from the first connection to the end of the last."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import uvicorn

from eagleray.serving.gateway import listening
from eagleray.serving.gateway.face import Face, FaceState
from eagleray.serving.gateway.forwarding import Proxies
from eagleray.serving.gateway.rules import Rules
from eagleray.serving.gateway.settings import GatewaySettings
from eagleray.serving.gateway.tls import HANDSHAKE_S, Certificate
from eagleray.serving.memory import GATEWAYS

log = logging.getLogger(__name__)

App = Callable[[Any, Any, Any], Awaitable[None]]

NOTICE_S = 1.0
"""So long a gateway that is about to end says so: it is not ready, and its answers close their connection."""
_HANDSHAKES_S = 0.2
"""The end of the notice, in which connections that are begun are completed and no more are begun here: a
round trip to the other side of the world."""
_SPARE_CONNECTIONS = 64
"""Beyond the limit so many are told that there are too many; more are closed without a word."""
_ACCEPTED_AT_ONCE = 64
_NO_DESCRIPTORS_S = 0.1
_TICK_S = 1.0
_POLL_S = 0.02
_CANCEL_S = 1.0
_READY_PATH = "/v2/health/ready"
_NOT_READY = b'{"ready":false,"error":"this gateway is about to end"}'


class Gateway:
    """Serves an ASGI application over HTTP/1.1; every method in its loop.

    Args:
        app: What answers.
        settings: The same for all gateways of the cluster.
        host: Where it listens.
        port: Where it listens; 0 takes any free one.
        directory: A folder of the cluster's serving on this machine.
        on_refused: Called with the status of each answer that is not the application's, and the client.
        rules: The limits of a connection.
        connection: Makes one, of the arguments of `Face`.
    """

    def __init__(
        self,
        app: App,
        settings: GatewaySettings,
        *,
        host: str,
        port: int,
        directory: Path,
        on_refused: Callable[[int, str], None] = lambda _status, _client: None,
        rules: Rules | None = None,
        connection: Callable[..., Face] = Face,
    ) -> None:
        self._app, self._settings, self._connection = app, settings, connection
        self._host, self._port, self._directory = host, port, directory
        self._place: listening.Place | None = None
        self._greetings: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.Task[None] | None = None
        self._certificate: Certificate | None = None
        self.state = FaceState(rules or Rules(), Proxies(settings.trusted_proxies), on_refused)
        self._config = uvicorn.Config(
            self._answer,
            http=Face,
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_s,
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    @property
    def num_connections(self) -> int:
        """Open now, those that shake hands included."""
        return len(self.state.connections) + len(self._greetings)

    @property
    def is_listening(self) -> bool:
        """Whether it takes connections."""
        return self._place is not None

    async def open(self) -> None:
        """Listen. Raises: ServiceError where the port is another program's, or the certificate is none."""
        self._config.load()
        if self._settings.is_tls:
            self._certificate = Certificate(Path(self._settings.tls_cert), Path(self._settings.tls_key))
        self._place = listening.listen(self._host, self._port, self._directory / GATEWAYS)
        self._port = self._place.listener.getsockname()[1]
        self._tick()
        self._ticking = asyncio.get_running_loop().create_task(self._keep_ticking())
        self._watch_listener()

    async def close(self, limit_s: float, *, notice_s: float = NOTICE_S) -> None:
        """Say that it is about to end, take no more connections, finish what is under way, end the rest.

        Args:
            limit_s: Until what is still under way is given up, the notice included.
            notice_s: How long to say so before new connections are taken no more; without it those that are
                just being made are reset.
        """
        until_s = time.monotonic() + limit_s
        self.state.begin_drain()
        notice_s = min(notice_s, limit_s)
        handshakes_s = min(_HANDSHAKES_S, notice_s)
        await asyncio.sleep(notice_s - handshakes_s)
        if self._place is not None:
            await self._place.begin_no_more()
        await asyncio.sleep(handshakes_s)
        self._stop_listening()
        for connection in list(self.state.connections):
            connection.shutdown()
        while self.num_connections and time.monotonic() < until_s:
            await asyncio.sleep(_POLL_S)
        if self.num_connections:
            log.warning("%d connections are given up after %.0f s", self.num_connections, limit_s)
        await self._end_connections()
        if self._ticking is not None:
            self._ticking.cancel()

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        if self.state.is_draining and scope["path"] == _READY_PATH:
            await send({"type": "http.response.start", "status": 503, "headers": _headers(len(_NOT_READY))})
            await send({"type": "http.response.body", "body": _NOT_READY})
        else:
            await self._app(scope, receive, send)

    # Accepting, here and not by loop.create_server: before a shared listener is closed, what the kernel has
    # queued for it must be taken, or it is reset.

    def _watch_listener(self) -> None:
        if self._place is not None:
            asyncio.get_running_loop().add_reader(self._place.listener, self._accept)

    def _accept(self, limit: int = _ACCEPTED_AT_ONCE) -> None:
        assert self._place is not None
        loop = asyncio.get_running_loop()
        for _ in range(limit):
            try:
                sock = self._place.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:  # gone before it was taken
                continue
            except OSError as error:  # no descriptors left, say
                log.warning("a connection could not be accepted: %s", error)
                loop.remove_reader(self._place.listener)
                loop.call_later(_NO_DESCRIPTORS_S, self._watch_listener)
                return
            if self.num_connections >= self._settings.max_connections + _SPARE_CONNECTIONS:
                sock.close()
                continue
            task = loop.create_task(self._greet(sock))
            self._greetings.add(task)
            task.add_done_callback(self._greetings.discard)

    async def _greet(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        try:
            if self._certificate is None:
                await loop.connect_accepted_socket(self._face, sock)
            else:
                await loop.connect_accepted_socket(
                    self._face, sock, ssl=self._certificate.context, ssl_handshake_timeout=HANDSHAKE_S
                )
        except OSError as error:  # SSLError is one
            log.debug("a connection ended before it began: %s", error)
            sock.close()

    def _face(self) -> Face:
        # With itself: this connection is counted among the greetings still.
        is_full = self.num_connections > self._settings.max_connections
        return self._connection(self._config, self.state, is_full=is_full)

    def _stop_listening(self) -> None:
        if self._place is not None:
            self._accept(listening.BACKLOG)
            asyncio.get_running_loop().remove_reader(self._place.listener)
            self._place.leave()
            self._place = None

    async def _end_connections(self) -> None:
        for task in [*self.state.tasks, *self._greetings]:
            task.cancel()
        until_s = time.monotonic() + _CANCEL_S
        while self.state.tasks and time.monotonic() < until_s:
            await asyncio.sleep(_POLL_S)
        for connection in list(self.state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    async def _keep_ticking(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._tick()

    def _tick(self) -> None:
        if self._certificate is not None:
            self._certificate.refresh()
        self.state.default_headers = [(b"date", formatdate(usegmt=True).encode())]


def _headers(num_bytes: int) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"application/json"), (b"content-length", str(num_bytes).encode())]
