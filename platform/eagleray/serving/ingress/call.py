"""`Call`: all that a handler has in hand while it answers one request."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from eagleray.errors import InputError, ServiceError
from eagleray.protocol.generation import GenerationRequest
from eagleray.protocol.tensors import Array
from eagleray.serving.admin import AdminBackend
from eagleray.serving.admission import deadline
from eagleray.serving.admission.refusal import Refusal
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.gateway.cache import ResponseCache
from eagleray.serving.gateway.tracing import Watch
from eagleray.serving.ingress import passage
from eagleray.serving.ingress.door import refused, reserve_tokens
from eagleray.serving.ingress.http import HttpError, Request, WhileWaitedFor
from eagleray.serving.ingress.metrics import IngressMetrics
from eagleray.serving.ingress.routing import Table
from eagleray.serving.keys import Key
from eagleray.serving.routes import Target
from eagleray.serving.state import IngressState
from eagleray.serving.transport import Outputs, Overloaded, Transport

OFF_LOOP_BYTES = 128 * 2**10
"""JSON from here on is decoded in a thread: it takes about 20 ms a megabyte, and others wait."""

STARTING_S = 2.0
"""After so long a version that is starting is worth another try."""

T = TypeVar("T")


@dataclass
class Call:
    """One request on one route; `target` is set when the request has found its model version."""

    request: Request
    request_id: str
    state: IngressState
    transport: Transport
    admin: AdminBackend
    metrics: IngressMetrics
    table: Table
    params: Mapping[str, str] = field(default_factory=dict)
    target: Target | None = None
    watch: Watch = field(default_factory=Watch)
    cache: ResponseCache = field(default_factory=ResponseCache)
    waited_s: float = 0.0
    """For another's answer, before a replica was asked."""
    key: Key | None = None
    """That the request came with, where it is a good one of ours."""
    ticket: Ticket | None = None
    """Of the admission, where the request asks a model for something."""
    gate_of: passage.GateOf = passage.no_gate
    """Before which queue a request to a model version waits."""
    num_tokens: int = 0
    """Of prompt and answer so far, where text is generated."""
    _ended: Refusal | None = None
    _patience: asyncio.Timeout | None = None

    def waiting(self, seconds: float | None) -> asyncio.Timeout:
        """`async with call.waiting(5):` is `asyncio.timeout`, and is left when the request is ended, too.

        Raises, out of the block: TimeoutError; see `check_ended`. One block at a time.
        """
        self.check_ended()
        self._patience = asyncio.timeout(seconds)
        return self._patience

    @property
    def ended(self) -> Refusal | None:
        """Why the request was ended, where it was."""
        return self._ended

    def check_ended(self) -> None:
        """Raises: HttpError where the request was ended: its key was revoked, or has expired."""
        if self._ended is not None:
            raise refused(self._ended)

    def end(self, refusal: Refusal) -> None:
        """Leave what is waited for: the request is answered, or its stream ended, with the refusal."""
        self._ended = refusal
        now_s = asyncio.get_running_loop().time()
        if self._patience is not None:
            with contextlib.suppress(RuntimeError):  # its block is left already
                self._patience.reschedule(now_s)

    def reserve_tokens(self, request: GenerationRequest) -> None:
        """Let the key pay for the most that the request can use. Raises: HttpError 429."""
        if self.ticket is not None:
            reserve_tokens(self.ticket, request)

    @property
    def left_s(self) -> float:
        """How long the answer is waited for from now on: less than others where the client has said so."""
        if self.ticket is None or deadline.HEADER not in self.request.headers:
            return max(0.0, self.state.limits.timeout_s - self.waited_s)
        return max(0.0, self.ticket.deadline_s - time.monotonic())

    async def body(self) -> bytes:
        """The request's body. Raises: HttpError 413, 408, 415; as `check_ended`."""
        limits = self.state.limits
        try:
            async with self.waiting(None):
                return await self.request.body(limits.max_body_bytes, limits.timeout_s)
        except TimeoutError:
            self.check_ended()
            raise

    async def decoded(self, decode: Callable[[bytes], T], *, is_slow: bool = False) -> T:
        """`decode` of the body, in a thread where that `is_slow` or the body large. Raises: as `decode`."""
        body = await self.body()
        if len(body) < OFF_LOOP_BYTES and not is_slow:
            return decode(body)
        return await asyncio.to_thread(decode, body)

    def find(self, model: str | None = None, version: str | None = None) -> Target:
        """The version that the path names, or `model`; ready or not. Raises: UnknownModel, WrongModel."""
        self.target = self.state.routes.resolve(
            self.params["model"] if model is None else model,
            self.params.get("version") if version is None else version,
        )
        if self.key is not None:
            self.key.require_model(self.target.name)
        return self.target

    def ready(self, model: str | None = None) -> Target:
        """As `find`. Raises: Overloaded where it is still starting, ServiceError where it failed."""
        target = self.find(model)
        check_ready(target)
        return target

    async def infer(self, target: Target, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The replica's outputs; it stops where nobody waits for them any more.

        Raises: as `Transport.infer`, but HttpError 504 instead of TimeoutError; ClientGone.
        """
        timeout_s, timings = self.left_s, None
        self.watch.mark("decode")
        try:
            with WhileWaitedFor(self.request):
                waited_s = await self.turn(target, passage.cost_of(inputs))
                async with self.waiting(None):
                    left_s = timeout_s - waited_s
                    outputs = await self.transport.infer(target, inputs, timeout_s=left_s, ticket=self.ticket)
            timings = outputs.timings if isinstance(outputs, Outputs) else None
        except TimeoutError:
            self.check_ended()
            raise no_answer(target, timeout_s) from None
        finally:
            self.watch.mark_replica(timings)
        if self.ticket is not None:
            if timings is None:  # no link carried it, which is what was foretold
                self.ticket.foretold_s = 0.0
            self.ticket.answered(time.monotonic())
        return outputs

    async def turn(self, target: Target, cost: int = 1) -> float:
        """Wait until it is the request's turn among those of all keys; how long that was, in seconds.

        Raises: HttpError 503 where it would come too late, 504 where its time is over.
        """
        if self.ticket is None:
            return 0.0
        begun_s = time.monotonic()
        self.ticket.deadline_s = begun_s + self.left_s  # however long its body took to come
        if (left := passage.turn(self.gate_of(target), self.ticket, cost)) is None:
            return 0.0
        try:
            async with self.waiting(self.left_s):
                await left
        except TimeoutError:
            self.check_ended()
            raise passage.late(self.ticket) or no_answer(target, time.monotonic() - begun_s) from None
        finally:
            self.watch.mark("queue")
        return time.monotonic() - begun_s


def check_ready(target: Target) -> None:
    """Raises: Overloaded where it is still starting, ServiceError where it failed."""
    if target.state == "starting":
        raise Overloaded(f"{named(target)} is starting; try again in a moment", STARTING_S)
    if target.state != "ready":
        why = f": {target.message}" if target.message else ""
        raise ServiceError(f"{named(target)} is {target.state}{why}")


def named(target: Target) -> str:
    """For messages."""
    return f"model {target.name!r} version {target.version}"


def no_answer(target: Target, timeout_s: float) -> HttpError:
    """The answer where a replica took too long."""
    return HttpError(504, f"{named(target)} did not answer within {timeout_s:.3g} s")


def only(values: Any, *allowed: str, what: str = "the body") -> dict[str, Any]:
    """`values`, an object with none but the `allowed` keys. Raises: InputError."""
    if not isinstance(values, dict):
        raise InputError(f"{what}: expected an object with {' and '.join(allowed)}")
    if unknown := [key for key in values if key not in allowed]:
        raise InputError(f"{what}: unknown key {unknown[0][:60]!r}; known: {', '.join(allowed)}")
    return values
