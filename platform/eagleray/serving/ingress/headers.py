"""Headers that a client may not set, and the id of a request."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from eagleray.serving.ingress.http import Receive, Scope, Send

CONTROL = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve_multiplexed_model_id",
        b"serve-multiplexed-model-id",
        b"x-session-id",
        b"x-serve-internal-request-id",
    }
)
"""With these a client of Ray Serve 2.60 sets time-outs, keeps abandoned requests running, evicts models and
picks replicas."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def strip(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers without those in `CONTROL`."""
    return [(name, value) for name, value in headers if name.lower() not in CONTROL]


class StripControlHeaders:
    """ASGI middleware for what stands in front of the ingress (Serve's own proxy reads these headers too)."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[Any]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, without the control headers."""
        if scope["type"] in ("http", "websocket"):
            scope = {**scope, "headers": strip(scope["headers"])}
        await self._app(scope, receive, send)


def request_id(given: str | None) -> str:
    """The client's id where it is a usable one, else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
