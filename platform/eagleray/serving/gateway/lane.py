"""The fast lane: inference and streams of text answered by callbacks, without a Task or a Future for each.

    LaneFace (a connection) -> LaneExchange (a request): admit, collect, decode -> Pool -> encode, write
                                 LaneCall (/v2/models/…/infer), LaneStream (…/generate_stream, /v1/…)

A request of the usual kind to a version with linked replicas takes it; whatever else comes is answered by
the ASGI application, by the same rules and in the same words. A request of the lane stands where uvicorn's
request cycle stands, so that pipelining, keep-alive, drain, refusals and lost clients are the connection's
business as ever.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from uvicorn import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from eagleray.serving.gateway.face import Face, FaceState
from eagleray.serving.gateway.lane_cache import CachedCall
from eagleray.serving.gateway.lane_call import LaneCall
from eagleray.serving.gateway.lane_exchange import LaneExchange
from eagleray.serving.gateway.lane_heads import Heads, KnownHead, head_of
from eagleray.serving.gateway.lane_places import BEGIN, GENERATE, INFER, TEXTS, Place, looked_up
from eagleray.serving.gateway.lane_stream import LaneStream
from eagleray.serving.gateway.lane_words import read_headers
from eagleray.serving.gateway.link_transport import LinkTransport
from eagleray.serving.ingress.door import ADMITTED, Admitted
from eagleray.serving.link.waking import Awake

if TYPE_CHECKING:
    from eagleray.serving.ingress.app import IngressApp
    from eagleray.serving.state import IngressState

_log = logging.getLogger(__name__)
_MAX_FOUND = 1024
_SWEEP_S = 0.25
_PLAIN = frozenset(("", "identity"))


class Lane:
    """What the lane's requests share; for one event loop.

    Args:
        app: Takes all other requests; its state, admission and counters are the lane's too.
        transport: Has the links.
        begin: Called where a request begins; gives what `end` is called with.
        end: Called where it is over.
    """

    def __init__(
        self,
        app: IngressApp,
        transport: LinkTransport,
        *,
        begin: Callable[[], int] = lambda: 0,
        end: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.app, self.transport, self.begin, self.end = app, transport, begin, end
        self.loop = asyncio.get_running_loop()
        self.heads = Heads()
        self.awake = Awake(self.loop, lambda: not self._waiting)
        self._state: IngressState | None = None
        self._found: dict[bytes, Place] = {}
        self._waiting: dict[LaneExchange, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._unwritten: list[LaneStream] = []

    def connection(self, config: Config, state: FaceState, *, is_full: bool = False) -> LaneFace:
        """A connection with the lane."""
        return LaneFace(config, state, self, is_full=is_full)

    def find(self, path: bytes) -> Place | None:
        """Where it leads; None: not to a model version that answers requests of the lane now."""
        state = self.app.state
        if state is not self._state:
            self._state, self._found = state, {}
        place = self._found.get(path)
        if place is None:
            if (place := looked_up(state, path)) is None:
                return None
            if len(self._found) < _MAX_FOUND:
                self._found[path] = place
        line = self.transport.line(place.target.app)
        return place if line is not None and line.pool.links else None

    # Looked at now and then: a timer for each would cost it what its decoding does.

    def wait(self, call: LaneExchange) -> None:
        """End the call some time after its `until_s`, unless it leaves before."""
        self._waiting[call] = None
        if self._timer is None:
            self._timer = self.loop.call_later(_SWEEP_S, self._sweep)

    def leave(self, call: LaneExchange) -> None:
        """It is over."""
        self._waiting.pop(call, None)
        if not self._waiting:
            self.awake.expect()

    def flush_soon(self, stream: LaneStream) -> None:
        """Have the stream write what came, with this tick's others."""
        if not self._unwritten:
            self.loop.call_soon(self._flush)
        self._unwritten.append(stream)

    def _flush(self) -> None:
        streams, self._unwritten = self._unwritten, []
        for stream in streams:
            try:
                stream.flush()
            except Exception:  # the others have theirs to write
                _log.exception("a stream could not be written")
                stream.break_off()

    def _sweep(self) -> None:
        self._timer = self.loop.call_later(_SWEEP_S, self._sweep) if self._waiting else None
        now_s = time.monotonic()
        for call in list(self._waiting):
            if call.until_s <= now_s:
                call.expire()
            else:
                call.listen()


class LaneFace(Face):
    """A connection whose usual requests take the lane."""

    def __init__(self, config: Config, state: FaceState, lane: Lane, *, is_full: bool = False) -> None:
        super().__init__(config, state, is_full=is_full)
        self._lane = lane
        self._last_head = b""

    def _begin(self) -> None:
        call: Any = self._laned()
        if call is None:
            super()._begin()
            return
        self.scope |= {"method": "POST", "path": self.url.decode()}  # type: ignore[operator]
        before, self.cycle = self.cycle, call
        if before is None or before.response_complete:
            self._start_asgi_task(call, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((call, self.app))  # type: ignore[arg-type]

    def _laned(self) -> LaneExchange | None:
        """The request, if it takes the lane."""
        path = self.url
        if not (path in TEXTS or (path.startswith(BEGIN) and path.endswith((INFER, GENERATE)))):
            return None
        headers = read_headers(self.headers)
        if not self._is_usual(headers):
            return None
        keep_alive = self.parser.should_keep_alive() and not self._state.is_draining
        return self._call(path, headers, keep_alive=keep_alive)

    def _call(self, path: bytes, headers: Mapping[str, str], *, keep_alive: bool) -> LaneExchange | None:
        """The request, if what it asks for can be reached by the lane now."""
        lane, is_text = self._lane, path in TEXTS
        place = None if is_text else lane.find(path)
        if place is None and not (is_text and lane.transport.has_links):
            return None
        if place is not None and path.endswith(INFER):
            kind = CachedCall if place.target.cache_bytes else LaneCall
            return kind(lane, self, place, headers, keep_alive=keep_alive)
        route = TEXTS[path] if place is None else place.route
        return LaneStream(lane, self, route, place, headers, keep_alive=keep_alive)

    def _is_usual(self, headers: Mapping[str, str]) -> bool:
        return (
            self.parser.get_method() == b"POST"
            and not self.expect_100_continue
            and self.parser.get_http_version() == "1.1"
            and headers.get("content-encoding", "") in _PLAIN
        )

    def data_received(self, data: bytes) -> None:
        """As the base; what is left of a large body goes where the replica reads it."""
        self._lane.awake.came()
        head = head_of(data) if self._is_between() else b""
        known = self._lane.heads.find(head)
        if known is not None and self._repeated(known, head, data):
            return
        before, parser = self.cycle, self.parser
        super().data_received(data)
        if head and known is None and self.cycle is not before and self.parser is parser:
            self._learn(head, len(data) - len(head))
        call = self._running
        if (
            self._is_in_body
            and isinstance(call, LaneCall)
            and call is self.cycle
            and self.scheme == "http"  # over TLS there is a copy anyway
            and not (self._is_deaf or self.flow.read_paused or self.transport.is_closing())
            and (filler := call.filler()) is not None
        ):
            filler.begin()

    def _is_between(self) -> bool:
        """Whether all before it is answered, and what comes now is a request's first byte."""
        return self._running is None and not (
            self._is_in_head or self._is_in_body or self._is_deaf or self._state.is_draining or self.pipeline
        )

    def _learn(self, head: bytes, num_body: int) -> None:
        """Know the head of the request that was read from now on, where another may begin with it."""
        if head != self._last_head:
            self._last_head = head
            return
        call: Any = self.cycle
        is_whole = not (self._is_in_body or self._is_in_head)
        if is_whole and isinstance(call, LaneExchange) and call.keep_alive:
            read = read_headers(self.headers)
            if read.get("content-length") == str(num_body):
                self._lane.heads.keep(head, KnownHead(self.url, tuple(self.headers), read, num_body))

    def _repeated(self, known: KnownHead, head: bytes, data: bytes) -> bool:
        """Take a whole request whose head is known; False: the parser has to read it.

        Where it is refused by its head, its body counts as received.
        """
        if len(data) != len(head) + known.num_body or self.transport.is_closing():
            return False
        self.on_message_begin()
        self.url = known.url
        self.headers += known.headers
        self._is_in_head, self._is_head_over = False, True
        self._name_sender()
        self._is_head_over = False
        call: Any = self._call(known.url, known.read, keep_alive=True)
        if call is None:
            return False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self.scope |= {"method": "POST", "path": self.url.decode()}  # type: ignore[operator]
        call.feed(data[len(head) :])
        call.more_body = False
        self.cycle = call
        self._start_asgi_task(call, self.app)
        return True

    def hand_over(self, call: LaneExchange, scope: Any, body: bytes, admitted: Admitted) -> None:
        """Let the application answer a call of the lane of which nothing was answered."""
        scope |= {"raw_path": scope["path"].encode(), "query_string": b""}
        scope["state"][ADMITTED] = admitted
        cycle = RequestResponseCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=call.keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.body += body
        cycle.more_body = False
        cycle.message_event.set()
        if self.cycle is cast(Any, call):
            self.cycle = cycle
        self._start_asgi_task(cycle, self.app)

    def leave_unread(self, num_bytes: int) -> None:
        """Bytes of a body that nobody wants have come, past the parser."""
        self._leave_unread(num_bytes)

    def on_body(self, body: bytes) -> None:
        """As the base."""
        cycle: Any = self.cycle
        if isinstance(cycle, LaneExchange) and not cycle.response_complete:
            cycle.feed(body)
            if cycle is not self._running and not cycle.response_complete:
                self.flow.pause_reading()  # again, where `read_on` let it go on
        else:
            super().on_body(body)

    def read_on(self) -> None:
        """Read while a request is worked on, unless one behind it has much of its body here."""
        body = getattr(self.cycle, "body", b"")  # of uvicorn's; those of the lane keep to the limit
        if not self.flow.write_paused and len(body) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, LaneExchange):
            self._running = cycle  # type: ignore[assignment]
            cycle.start()
        else:
            super()._start_asgi_task(cycle, app)

    def resume_writing(self) -> None:
        """As the base; reading goes on, which `LaneExchange` stops where a client does not take answers."""
        super().resume_writing()
        self.flow.resume_reading()
        if isinstance(call := cast(Any, self._running), LaneStream):
            call.go_on()
