"""What runs inside Serve's own proxy, in front of the ingress: control headers of clients are taken away.

Serve 2.60's proxy reads them before any application does. `eagleray up` names `middlewares` in the variable
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which Serve reads at import; on a cluster of your own set it before
`ray start`. Without it the ingress still never sees them, but a client can end its own requests early, or let
them go on when it has gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

CONTROL = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve-multiplexed-model-id",
        b"x-session-id",
    }
)
"""With these a client of Ray Serve 2.60 sets time-outs, keeps abandoned requests running, evicts models and
picks replicas. Serve takes a dash for an underscore and the other way round."""


def strip(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers without those in `CONTROL`."""
    return [(name, value) for name, value in headers if name.lower().replace(b"_", b"-") not in CONTROL]


class StripControlHeaders:
    """ASGI middleware."""

    def __init__(self, app: Callable[..., Awaitable[Any]]) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Pass everything on, without the control headers."""
        if scope["type"] in ("http", "websocket"):
            scope = {**scope, "headers": strip(scope["headers"])}
        await self._app(scope, receive, send)


def middlewares() -> list[Any]:
    """For Serve's proxy."""
    from starlette.middleware import Middleware

    return [Middleware(StripControlHeaders)]
