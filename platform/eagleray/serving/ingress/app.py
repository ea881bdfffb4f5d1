"""`IngressApp`: the ingress as a raw ASGI application, without Ray."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Any

from eagleray.errors import AuthError, ModelNotFound
from eagleray.serving.admin import AdminBackend
from eagleray.serving.admission.door import Admission
from eagleray.serving.admission.gate import Gate
from eagleray.serving.admission.refusal import Refusal
from eagleray.serving.gateway import access_log
from eagleray.serving.gateway.access_log import AccessLog
from eagleray.serving.gateway.cache import ResponseCache
from eagleray.serving.gateway.tracing import Watch
from eagleray.serving.ingress import admin, door, failures, generate, headers, openai, pages, people, v2
from eagleray.serving.ingress.call import Call
from eagleray.serving.ingress.http import (
    ClientGone,
    Message,
    Receive,
    Request,
    Response,
    Scope,
    Send,
    Stream,
)
from eagleray.serving.ingress.metrics import NO_ROUTE, IngressMetrics
from eagleray.serving.ingress.passage import GateOf, no_gate
from eagleray.serving.ingress.routing import Route, Table
from eagleray.serving.routes import Target
from eagleray.serving.state import IngressState
from eagleray.serving.transport import Transport

END_S = 1.0
"""A stream of a key that was revoked is cut off after so long, where its client does not take its end."""
SWEEP_S = 1.0
CLIENT_GONE = 499
"""nginx's code for a client that left before its answer; in the counters only."""


class IngressApp:
    """Answers HTTP for the models of `state`.

    `state` may be replaced at any time (`app.state = newer`); a request keeps the one it began with, and ends
    early where its key is gone from the newer one. For one event loop.
    """

    def __init__(self, state: IngressState, transport: Transport, admin_backend: AdminBackend) -> None:
        self.admission = Admission()
        self.cache = ResponseCache()
        self.state = state
        self.gate_of: GateOf = no_gate
        """Before which queue a request to a model version waits."""
        self.access_log: AccessLog | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self.metrics = IngressMetrics(self.cache)
        self.table = Table(all_routes())
        self._transport = transport
        self._admin = admin_backend

    @property
    def state(self) -> IngressState:
        """What requests that begin now go by."""
        return self._state

    @state.setter
    def state(self, state: IngressState) -> None:
        self._state = state
        self._has_expiring_keys = any(key.terms.expires_at for key in state.keys.keys.values())
        self.admission.max_body_bytes = state.limits.max_body_bytes
        self.admission.longest_s = state.limits.timeout_s
        self.admission.take(state.keys)
        self.cache.follow(state.routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entry: HTTP and lifespan; a websocket is refused."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    def begin(self) -> None:
        """A request is under way; each is to be ended."""
        self.metrics.in_flight += 1
        if self._has_expiring_keys and self._sweep is None:
            self._end_expired()

    def end(self) -> None:
        """A request is not under way any more."""
        self.metrics.in_flight -= 1
        if not self.metrics.in_flight and self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun: door.Admitted | None = scope.get("state", {}).get(door.ADMITTED)
        started_s = begun.started_s if begun else time.perf_counter()
        pairs = scope["headers"]
        request = Request(
            scope, receive, {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in pairs}
        )
        request_id = begun.request_id if begun else headers.request_id(request.headers.get("x-request-id"))
        call = Call(request, request_id, self.state, self._transport, self._admin, self.metrics, self.table)
        call.gate_of, call.cache = self.gate_of, self.cache
        call.watch = begun.watch if begun else Watch(request.headers.get("traceparent"))
        call.ticket = begun.ticket if begun else None
        exchange = _Exchange()
        self.begin()
        try:
            answer = await self._answer(call, exchange)
            exchange.status = answer.status
            answer.headers |= {"x-request-id": request_id, **call.watch.headers()}
            exchange.answer = answer
            await answer.send(request, send)
        except BaseException:
            exchange.status = exchange.status if exchange.answer else CLIENT_GONE
            raise
        finally:
            self._close(call, exchange)
            self.end()
            self._count(call, exchange, time.perf_counter() - started_s)

    async def _answer(self, call: Call, exchange: _Exchange) -> Response | Stream:
        try:
            exchange.route, call.params = self.table.find(call.request.method, call.request.segments())
            if not exchange.route.is_inference:
                call.key = door.authorize(call.state, call.request.headers, exchange.route.scope)
                call.watch.mark("admission")
                return await exchange.route.handler(call)
            self._admit(call)
            call.watch.mark("admission")
            answer = await exchange.route.handler(call)
            if call.ticket is not None:
                answer.headers.update(call.ticket.account.state(time.monotonic()))
            return answer
        except ClientGone:
            return Response(status=CLIENT_GONE)  # nobody reads it
        except Exception as error:
            return _failed(call, error)
        except asyncio.CancelledError:
            # `_end` cut it off: what it waited for, a thread say, cannot be told to end.
            task = asyncio.current_task()
            if call.ended is None or task is None or task.uncancel():
                raise
            return _failed(call, door.refused(call.ended))

    def _admit(self, call: Call) -> None:
        ticket = call.ticket
        if ticket is None:  # else it comes from the fast lane
            request, model = call.request, call.params.get("model", "").partition("@")[0] or None
            num_bytes, gate = request.announced_bytes, self._gate(call)
            ticket = door.admit(self.admission, call.state, request.headers, num_bytes, model, gate=gate)
        elif ticket.key is not None and ticket.key.id not in call.state.keys.keys:
            # It was on its way here, where nobody could be told.
            raise AuthError(f"the API key {ticket.account.name!r} was revoked")
        call.ticket, call.key = ticket, ticket.key
        task = asyncio.current_task()
        assert task is not None
        ticket.on_end = functools.partial(self._end, call, task)

    def _gate(self, call: Call) -> Gate | None:
        """Of the version that the path names; None where it names none that answers, or one with a cache."""
        if (model := call.params.get("model")) is None:
            return None
        try:
            target = call.state.routes.resolve(model, call.params.get("version"))
        except ModelNotFound:
            return None  # told in its turn
        return self.gate_of(target) if target.state == "ready" and not target.cache_bytes else None

    def _end(self, call: Call, task: asyncio.Task[Any], refusal: Refusal) -> None:
        """Let an answer that is under way end: by itself, and where its client takes nothing all the same."""
        call.end(refusal)

        def cut() -> None:
            if call.ticket is not None and not call.ticket.is_closed:
                task.cancel()

        asyncio.get_running_loop().call_later(END_S, cut)

    def _close(self, call: Call, exchange: _Exchange) -> None:
        if (ticket := call.ticket) is not None:
            request, answer = call.request, exchange.answer
            ticket.received(max(0, request.num_body_bytes - request.announced_bytes))
            ticket.sent(answer.num_bytes if answer else 0)
            ticket.used_tokens(call.num_tokens)
            ticket.close(time.monotonic())

    def _end_expired(self) -> None:
        """End what is under way for keys whose time is over, every second while anything is."""
        self._sweep = asyncio.get_running_loop().call_later(SWEEP_S, self._end_expired)
        self.admission.end_expired()  # what it ends may be the last that was under way, and stop this

    def count(
        self,
        *,
        request_id: str,
        watch: Watch,
        scope: Scope,
        route: str,
        target: Target | None,
        status: int,
        seconds: float,
        received: int,
        sent: int,
    ) -> None:
        """Take an exchange that is over into the counters, and into the access log where there is one."""
        self.metrics.count(
            route=route,
            model=target.name if target else "",
            version=str(target.version) if target else "",
            code=status,
            seconds=seconds,
            received=received,
            sent=sent,
            parts_s=watch.spans_s if target else {},
        )
        if self.access_log is None:
            return
        self.access_log.write(
            access_log.exchange(
                request_id=request_id,
                trace_id=watch.trace.trace_id,
                client=scope["client"][0] if scope.get("client") else "",
                method=scope["method"],
                path=scope["path"],  # without the query: it may carry what is nobody's business
                route=route,
                model=target.name if target else "",
                version=target.version if target else None,
                status=status,
                seconds=seconds,
                received=received,
                sent=sent,
                spans_s=watch.spans_s,
            )
        )

    def refused(self, status: int, client: str) -> None:
        """Take a request that was no HTTP as we take it, or came on one connection too many."""
        self.metrics.count_refused(status)
        if self.access_log is not None:
            self.access_log.write(access_log.refusal(status, client, NO_ROUTE))

    def _count(self, call: Call, exchange: _Exchange, seconds: float) -> None:
        self.count(
            request_id=call.request_id,
            watch=call.watch,
            scope=call.request.scope,
            route=exchange.route.path if exchange.route else NO_ROUTE,
            target=call.target,
            status=exchange.status,
            seconds=seconds,
            received=call.request.num_body_bytes,
            sent=exchange.answer.num_bytes if exchange.answer else 0,
        )


class _Exchange:
    """What becomes known of an exchange while it lasts, for the counters."""

    def __init__(self) -> None:
        self.route: Route | None = None
        self.answer: Response | Stream | None = None
        self.status = CLIENT_GONE


def all_routes() -> list[Route]:
    """Every route of the ingress, in the order of the documentation."""
    return [
        *v2.routes(),
        *generate.routes(),
        *openai.routes(),
        *people.routes(),
        *admin.routes(),
        *pages.routes(),
    ]


def _failed(call: Call, error: Exception) -> Response:
    return failures.response(failures.failure(error, call.request_id), call.request.scope["path"])


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message: Message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
