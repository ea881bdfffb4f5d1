"""Who is let in: who has a key, and, where none is needed, programs of this machine.

A web page of another site is kept out, though the browser that shows it runs here. Its requests carry its
`Origin`, or, where its name was made to lead to this machine (DNS rebinding), that name as `Host`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from eagleray.cluster import state as cluster_state
from eagleray.protocol.generation import GenerationRequest
from eagleray.serving.admission import deadline
from eagleray.serving.admission.door import Admission, Head
from eagleray.serving.admission.gate import Gate
from eagleray.serving.admission.refusal import Refusal
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.gateway.tracing import Watch
from eagleray.serving.ingress.http import HttpError
from eagleray.serving.keys import Key, Scope, carries_key
from eagleray.serving.state import IngressState

_AUTHORITY = re.compile(r"(?:\[([0-9a-f.]*:[0-9a-f:.]*)\]|([^\[\]:]+))(?::[0-9]{0,5})?", re.IGNORECASE)
_WAY_OUT = (
    "send an API key (`Authorization: Bearer er_…`; `eagleray keys create NAME` makes one), and behind a "
    "proxy set require_key = true"
)


@dataclass(frozen=True, slots=True)
class Admitted:
    """What is known of a request that a gateway's fast lane has let in, and leaves to the application."""

    ticket: Ticket
    request_id: str
    watch: Watch
    started_s: float
    """By `time.perf_counter`."""


ADMITTED = "eagleray.admitted"
"""Of an ASGI scope's `state`."""


def authorize(state: IngressState, headers: Mapping[str, str], scope: Scope | None) -> Key | None:
    """The key that the request is let in by, None where it has and needs none; or raise.

    `scope` is what a key must be good for; None: all are welcome.

    Raises:
        HttpError: 421 or 403; a key is needed only because the request comes from elsewhere, and it has none.
        AuthError, WrongScope: it needs a key and has none, or it has a bad one.
    """
    if scope is None:
        return None
    authorization = headers.get("authorization", "")
    if _needs_key(state, headers, authorization, scope):
        return state.keys.check(authorization, scope)
    return state.keys.check_optional(authorization)


def admit(
    admission: Admission,
    state: IngressState,
    headers: Mapping[str, str],
    num_bytes: int,
    model: str | None,
    *,
    gate: Gate | None = None,
) -> Ticket:
    """As `authorize`, for a request to a model: its key's limits have room for it, and it will be in time.

    Args:
        admission: Of this gateway.
        state: What the request goes by.
        headers: Of the request.
        num_bytes: The length of its body, as announced.
        model: The name in its path, where there is one.
        gate: Of the model version, where that is known.

    Raises:
        HttpError: as `authorize`, and all that `Admission.admit` refuses by.
    """
    authorization = headers.get("authorization", "")
    is_key_needed = _needs_key(state, headers, authorization, "infer")
    found = admission.admit(
        Head(authorization, num_bytes, model, is_key_needed, headers.get(deadline.HEADER), gate)
    )
    if isinstance(found, Refusal):
        raise refused(found)
    return found


def reserve_tokens(ticket: Ticket, request: GenerationRequest) -> None:
    """Let the key pay for the most that the request can use. Raises: HttpError 429."""
    # Of a prompt's tokens it is only known that they are no more than its bytes; what was too much is given
    # back at the end.
    most = len(request.prompt.encode()) + request.max_tokens
    if (found := ticket.reserve_tokens(most, time.monotonic())) is not None:
        raise refused(found)


def refused(refusal: Refusal) -> HttpError:
    """The admission's refusal, to be raised."""
    return HttpError(refusal.status, refusal.message, refusal.headers)


def is_open(state: IngressState, headers: Mapping[str, str]) -> bool:
    """Whether the request needs no key for the models."""
    return not state.is_key_needed_for_infer and _refusal(headers) is None


def _needs_key(state: IngressState, headers: Mapping[str, str], authorization: str, scope: Scope) -> bool:
    """Whether only a key lets the request in. Raises: HttpError where one would and there is none."""
    if scope != "infer" or state.is_key_needed_for_infer:
        return True
    refusal = _refusal(headers)
    if refusal is not None and not carries_key(authorization):
        raise refusal
    return refusal is not None


def _refusal(headers: Mapping[str, str]) -> HttpError | None:
    """Why the request is not one of this machine's own; None where it is."""
    # HTTP/1.0 may leave Host out; no browser does.
    if (host := headers.get("host")) is not None and not leads_here(host):
        return HttpError(
            421,
            "without a key models are for programs of this machine, which ask for http://127.0.0.1:PORT, and "
            f"this request asks for the host {host[:80]!r}: {_WAY_OUT}",
        )
    if (origin := headers.get("origin")) is not None and not leads_here(origin.partition("://")[2]):
        return HttpError(
            403,
            "without a key models are for programs of this machine, and this request is from a web page of "
            f"{origin[:80]!r}: {_WAY_OUT}",
        )
    return None


@lru_cache(maxsize=256)
def leads_here(authority: str) -> bool:
    """Whether `host` or `host:port` can lead nowhere but to this machine."""
    found = _AUTHORITY.fullmatch(authority)
    return found is not None and cluster_state.is_loopback(found[1] or found[2])
