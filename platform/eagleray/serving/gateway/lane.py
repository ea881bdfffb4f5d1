"""The fast lane: POST /v2/models/…/infer answered by callbacks, without a Task and without a Future for each.

    LaneFace (a connection) -> LaneCall (a request): admit, collect, decode -> Pool -> encode, write

A request of the usual kind to a version with linked replicas takes it; whatever else comes is answered by
the ASGI application, by the same rules and in the same words. A request of the lane stands where uvicorn's
request cycle stands, so that pipelining, keep-alive, drain, refusals and lost clients are the connection's
business as ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uvicorn import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from eagleray.serving.gateway.face import Face, FaceState
from eagleray.serving.gateway.lane_call import LaneCall
from eagleray.serving.gateway.lane_places import Place, looked_up
from eagleray.serving.gateway.link_transport import LinkTransport

if TYPE_CHECKING:
    from eagleray.serving.ingress.app import IngressApp
    from eagleray.serving.state import IngressState

_BEGIN, _END = b"/v2/models/", b"/infer"
_MAX_FOUND = 1024
_SWEEP_S = 0.25
_PLAIN = frozenset((b"", b"identity"))


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
        self._state: IngressState | None = None
        self._found: dict[bytes, Place] = {}
        self._waiting: dict[LaneCall, None] = {}
        self._timer: asyncio.TimerHandle | None = None

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

    def wait(self, call: LaneCall) -> None:
        """End the call some time after its `until_s`, unless it leaves before."""
        self._waiting[call] = None
        if self._timer is None:
            self._timer = self.loop.call_later(_SWEEP_S, self._sweep)

    def leave(self, call: LaneCall) -> None:
        """It is over."""
        self._waiting.pop(call, None)

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

    def _begin(self) -> None:
        path = self.url
        place = None
        if path.endswith(_END) and path.startswith(_BEGIN) and self._is_usual():
            place = self._lane.find(path)
        if place is None:
            super()._begin()
            return
        self.scope |= {"method": "POST", "path": path.decode()}  # type: ignore[operator]
        before, keep_alive = self.cycle, self.parser.should_keep_alive()
        call: Any = LaneCall(self._lane, self, place, self.headers, keep_alive=keep_alive)
        self.cycle = call
        if before is None or before.response_complete:
            self._start_asgi_task(call, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((call, self.app))  # type: ignore[arg-type]

    def _is_usual(self) -> bool:
        if (
            self.parser.get_method() != b"POST"
            or self.expect_100_continue
            or self.parser.get_http_version() != "1.1"
        ):
            return False
        return all(name != b"content-encoding" or value in _PLAIN for name, value in self.headers)

    def data_received(self, data: bytes) -> None:
        """As the base; what is left of a large body goes where the replica reads it."""
        super().data_received(data)
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

    def leave_unread(self, num_bytes: int) -> None:
        """Bytes of a body that nobody wants have come, past the parser."""
        self._leave_unread(num_bytes)

    def on_body(self, body: bytes) -> None:
        """As the base."""
        cycle: Any = self.cycle
        if isinstance(cycle, LaneCall) and not cycle.response_complete:
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
        if isinstance(cycle, LaneCall):
            self._running = cycle  # type: ignore[assignment]
            cycle.start()
        else:
            super()._start_asgi_task(cycle, app)

    def resume_writing(self) -> None:
        """As the base; reading goes on, which `LaneCall` stops where a client does not take its answers."""
        super().resume_writing()
        self.flow.resume_reading()
