"""The table of routes: patterns to handlers, and what the documentation says of each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from eagleray.serving.ingress.http import JSON, HttpError, Response, Stream
from eagleray.serving.keys import Scope

if TYPE_CHECKING:
    from eagleray.serving.ingress.call import Call

Handler = Callable[["Call"], Awaitable[Response | Stream]]


@dataclass(frozen=True)
class Route:
    """One method on one path. A segment `{name}` takes any text, `{name}:predict` what ends so."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handler: Handler
    summary: str
    tag: str
    scope: Scope | None = "infer"
    """What a key must be good for; None: open to all."""
    accepts: Mapping[str, Any] = field(default_factory=dict)
    """Media type of the body to its JSON schema."""
    answer: Mapping[str, Any] = field(default_factory=dict)
    """JSON schema of the answer, or of its events; none where it is no JSON."""
    status: int = 200
    media_type: str = JSON
    """Of the answer."""
    errors: Mapping[int, str] = field(default_factory=dict)
    """Statuses that mean something particular here, and what."""

    @property
    def is_inference(self) -> bool:
        """Whether it asks a model for something: what is told of models is nobody's to limit."""
        return self.scope == "infer" and self.method == "POST"

    @property
    def segments(self) -> tuple[str, ...]:
        """The path's parts."""
        return tuple(self.path.rstrip("/").split("/")[1:])


class Table:
    """Finds the route of a request."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)
        self._by_length: dict[int, list[tuple[tuple[str, ...], Route]]] = {}
        for route in routes:
            self._by_length.setdefault(len(route.segments), []).append((route.segments, route))

    def find(self, method: str, segments: Sequence[str]) -> tuple[Route, dict[str, str]]:
        """The route, and what its parameters took. Raises: HttpError 404, or 405 with what is allowed."""
        wanted = "GET" if method == "HEAD" else method
        allowed: list[str] = []
        for pattern, route in self._by_length.get(len(segments), ()):
            taken = _match(pattern, segments)
            if taken is None:
                continue
            if route.method == wanted:
                return route, taken
            allowed.append(route.method)
        path = "/" + "/".join(segments)
        shown = path if len(path) <= 80 else path[:77] + "..."
        if allowed:
            raise HttpError(
                405, f"{shown!r} takes {' and '.join(allowed)}, not {method}", {"allow": ", ".join(allowed)}
            )
        raise HttpError(404, f"nothing is at {shown!r}; /docs lists what is")


def _match(pattern: Sequence[str], segments: Sequence[str]) -> dict[str, str] | None:
    taken: dict[str, str] = {}
    for part, segment in zip(pattern, segments, strict=True):
        if part[:1] != "{":
            if part != segment:
                return None
            continue
        name, _, suffix = part[1:].partition("}")
        if not segment.endswith(suffix) or len(segment) == len(suffix):
            return None
        taken[name] = segment[: len(segment) - len(suffix)]
    return taken
