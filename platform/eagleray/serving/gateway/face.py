"""`Face`: one connection of a client. uvicorn's, kept to what cannot be read in two ways, and bounded.

llhttp, which parses, refuses two lengths, a length beside chunks, bad chunk sizes, bare line feeds, folded
lines. uvicorn takes any number of headers of any size, no Host, several Hosts, trailers as headers, and waits
for ever for the rest of a head, for a body that nobody reads, for a client that does not read.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any, NoReturn

import httptools
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from eagleray.protocol.infer import dumps
from eagleray.serving.gateway.forwarding import Proxies
from eagleray.serving.gateway.rules import Refused, Rules, check_head

log = logging.getLogger(__name__)

_FULL_RETRY_S = 1
_TIMER_S = 0.01
"""Timers are no more exact."""


class FaceState(ServerState):
    """What the connections of one gateway share.

    Args:
        rules: Their limits.
        proxies: Who is believed to know the client's address.
        on_refused: Called with the status of each answer that is not the application's, and the client.
    """

    def __init__(self, rules: Rules, proxies: Proxies, on_refused: Callable[[int, str], None]) -> None:
        super().__init__()
        self.rules, self.proxies, self.on_refused = rules, proxies, on_refused
        self.is_draining = False

    def begin_drain(self) -> None:
        """From now on each answer closes its connection."""
        self.is_draining = True
        for connection in self.connections:
            if (cycle := getattr(connection, "cycle", None)) is not None:
                cycle.keep_alive = False


class Face(HttpToolsProtocol):
    """A connection; `is_full`: there are too many, and this one is told so."""

    def __init__(self, config: Config, state: FaceState, *, is_full: bool = False) -> None:
        super().__init__(config, state, {})
        self._state, self._rules, self._is_full = state, state.rules, is_full
        self._refused: Refused | None = None
        self._running: RequestResponseCycle | None = None
        """The request that is being answered; `cycle` is the newest, which may wait behind it."""
        self._is_in_head = self._is_head_over = self._is_in_body = False
        self._num_headers = self._num_head_bytes = self._num_unwanted_bytes = 0
        self._is_declining = False
        """A request to speak another protocol is being read, which is spoken nowhere here."""
        self._is_deaf = False
        """Nothing more is taken; what was taken is answered."""
        self._last_words: bytes | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._idle_since_s = math.inf

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As the base."""
        super().connection_made(transport)
        if self._is_full:
            self._refuse(Refused(503, "the gateway has all the connections that it takes; try again"))
        else:
            self._head_timer = self.loop.call_later(self._rules.head_s, self._on_late_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """As the base; every request of the connection learns of it, not the newest alone."""
        for cycle in (self._running, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        timers = self._head_timer, self._end_timer, self._stall_timer, self.timeout_keep_alive_task
        for timer in timers:
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As the base."""
        if self._is_deaf:
            self._leave_unread(len(data))
            return
        was_in_head = self._is_in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            if self._refused is None and isinstance(error, httptools.HttpParserCallbackError):
                log.error("a request could not be begun", exc_info=error)
            self._refuse(self._refused or Refused(400, f"this is no HTTP/1.1 request: {error}"))
            return
        if self._is_in_head:
            # Where the head began, its headers are counted as they come; what has no end yet, here.
            self._num_head_bytes += len(data) if was_in_head else 0
            if self._num_head_bytes > self._rules.max_head_bytes:
                self._refuse(self._too_large_head())
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(self._rules.head_s, self._on_late_head)
        elif self._head_timer is not None and self.cycle is not None:  # line ends alone are no request
            self._head_timer.cancel()
            self._head_timer = None

    def pause_writing(self) -> None:
        """As the base; the client has to go on reading."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self._rules.stalled_s, self._on_stalled)

    def resume_writing(self) -> None:
        """As the base."""
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    # What the parser calls.

    def on_message_begin(self) -> None:
        """As the base."""
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._is_in_head, self._is_head_over = True, False
        self._num_headers = self._num_head_bytes = self._num_unwanted_bytes = 0

    def on_url(self, url: bytes) -> None:
        """As the base."""
        super().on_url(url)
        if len(self.url) > self._rules.max_target_bytes:
            self._stop(Refused(414, f"the path has more than {self._rules.max_target_bytes} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """As the base; what comes after a body is counted, and is no header."""
        self._num_headers += 1
        self._num_head_bytes += len(name) + len(value) + 4
        rules = self._rules
        if self._num_headers > rules.max_headers:
            self._stop(Refused(431, f"more than {rules.max_headers} headers"))
        if self._num_head_bytes > rules.max_head_bytes:
            self._stop(self._too_large_head())
        if not self._is_head_over:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """As the base, for a head that keeps to the rules."""
        method = self.parser.get_method()
        self._is_declining = self.parser.should_upgrade() and method != b"CONNECT"
        if self._is_declining:
            return
        self._is_in_head, self._is_head_over = False, True
        try:
            check_head(self.parser.get_http_version(), method, self.url, self.headers)
            if len(self.pipeline) >= self._rules.max_pipelined:
                raise Refused(429, f"more than {self._rules.max_pipelined} requests without their answers")
        except Refused as refused:
            self._stop(refused)
        self._is_in_body = True
        self._name_sender()
        self._begin()
        if self._state.is_draining:
            self.cycle.keep_alive = False

    def _name_sender(self) -> None:
        """Have the application know whose the request is, where a proxy has sent it."""
        if self._state.proxies.are_any and self.client is not None:
            sender = self._sender()
            if sender != self.client[0]:  # else its port is known, too
                self.scope["client"] = (sender, 0)

    def _begin(self) -> None:
        """Have the request answered whose head has come, now or after those before it."""
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """As the base; a body that nobody wants any more is let go by, up to a limit."""
        if self.cycle.response_complete:
            self._leave_unread(len(body))
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """As the base."""
        if self._is_declining:
            return
        is_answered = self.cycle.response_complete
        super().on_message_complete()
        self._is_in_body = self._is_head_over = False
        if is_answered:
            self.cycle.more_body = False
            if self._end_timer is not None:
                self._end_timer.cancel()
                self._end_timer = None
            if self.cycle.keep_alive:
                self._wait_for_another()
            else:
                self._end()

    # What uvicorn calls.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """As the base."""
        answered, self._running = self._running, None
        self._go_on()
        if self.transport.is_closing() or self._running is not None:
            return
        if self._is_deaf:
            self._unset_keepalive_if_required()
            self._say_last_words()
        elif answered is self.cycle and answered is not None and answered.more_body:
            # Its body still comes. Were the connection closed on it, the answer might be lost.
            self._unset_keepalive_if_required()
            self._end_timer = self.loop.call_later(self._rules.linger_s, self._end)

    def _go_on(self) -> None:
        """As the base, when a request is answered; but for the timer, which is not made anew each time."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            self._wait_for_another()

    def shutdown(self) -> None:
        """The gateway is about to end: an idle connection is closed, any other after its answer."""
        if self._running is None and not self.pipeline and not self._is_in_head:
            self._end()
        elif self.cycle is not None:
            self.cycle.keep_alive = False

    # Refusals.

    def _stop(self, refused: Refused) -> NoReturn:
        """Out of a call of the parser's. Raises: `refused`."""
        self._refused = refused
        raise refused

    def _too_large_head(self) -> Refused:
        return Refused(431, f"the headers have more than {self._rules.max_head_bytes} bytes")

    def _refuse(self, refused: Refused) -> None:
        """Answer what was taken before, then say why nothing more is, and close."""
        self._state.on_refused(refused.status, self._sender())
        words: bytes | None = _words(refused, self._state.default_headers)
        if self._is_in_body:
            cycle = self.cycle
            if cycle is self._running:
                if cycle.response_started:
                    self.transport.abort()
                    return
                cycle.disconnected = True  # what the application still says, nobody hears
                cycle.message_event.set()
                self._running = None
            elif self.pipeline and self.pipeline[0][0] is cycle:
                self.pipeline.popleft()
            else:
                words = None  # it has its answer
        self._is_deaf, self._last_words = True, words
        if self._head_timer is not None:
            self._head_timer.cancel()
        if self._running is None:
            self._say_last_words()

    def _sender(self) -> str:
        """Whose the request is that is being read: the socket's other end, unless all of its head is there.

        In half a head the proxy's own line may be missing, and what is there be the client's.
        """
        peer = self.client[0] if self.client else ""
        if not self._is_head_over:
            return peer
        forwarded = [value.decode("latin-1") for name, value in self.headers if name == b"x-forwarded-for"]
        return self._state.proxies.client_of(peer, forwarded)

    def _say_last_words(self) -> None:
        if self.transport.is_closing():
            return
        if self._last_words is not None:
            self.transport.write(self._last_words)
        if not self.transport.can_write_eof():  # TLS
            self._end()
            return
        # A close while bytes come in is a reset, which may overtake the answer.
        self.flow.resume_reading()
        self.transport.write_eof()
        self._end_timer = self.loop.call_later(self._rules.linger_s, self._end)

    def _leave_unread(self, num_bytes: int) -> None:
        self._num_unwanted_bytes += num_bytes
        if self._num_unwanted_bytes > self._rules.linger_bytes:
            self.transport.abort()

    def _wait_for_another(self) -> None:
        if self.transport.is_closing():
            return
        self._idle_since_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self._on_idle)

    def _unset_keepalive_if_required(self) -> None:
        """As the base: it is idle no more. The timer runs on, and finds that out."""
        self._idle_since_s = math.inf

    def _on_idle(self) -> None:
        """Close the connection, if nothing has come for as long as it is kept."""
        self.timeout_keep_alive_task = None
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s <= _TIMER_S:
            self.timeout_keep_alive_handler()
        elif left_s < math.inf:
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self._on_idle)

    def _decline(self, rest: bytes) -> None:
        """Take a request to speak another protocol as one that has no such wish.

        The parser ends it with its head: its body would be taken for the next request.
        """
        lines = (b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade")
        version = self.parser.get_http_version().encode()
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(lines))
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(head + rest)

    def _on_late_head(self) -> None:
        self._head_timer = None
        if self._is_in_head:
            self._refuse(Refused(408, f"the headers were not there within {self._rules.head_s:g} s"))
        elif self.cycle is None:
            self._end()

    def _on_stalled(self) -> None:
        self.transport.abort()

    def _end(self) -> None:
        self.transport.close()


def _words(refused: Refused, headers: list[tuple[bytes, bytes]]) -> bytes:
    body = dumps({"error": refused.message})
    lines = [
        *headers,
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if refused.status == 503:
        lines.append((b"retry-after", str(_FULL_RETRY_S).encode()))
    head = b"".join(b"%b: %b\r\n" % line for line in lines)
    return STATUS_LINE[refused.status] + head + b"\r\n" + body
