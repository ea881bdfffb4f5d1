"""Where the paths of the fast lane lead."""

from __future__ import annotations

from typing import NamedTuple

from eagleray.errors import ModelNotFound
from eagleray.serving.routes import Target
from eagleray.serving.state import IngressState

BEGIN, INFER, GENERATE = b"/v2/models/", b"/infer", b"/generate_stream"
TEXTS = {path.encode(): path for path in ("/v1/completions", "/v1/chat/completions")}
"""Routes whose bodies name the model."""
_VERSIONED = 7
"""Parts of a path that names a version."""
_ROUTES = {
    (number, name): f"{path}/{name}"
    for number, path in ((5, "/v2/models/{model}"), (_VERSIONED, "/v2/models/{model}/versions/{version}"))
    for name in ("infer", "generate_stream")
}


class Place(NamedTuple):
    """Where a path leads."""

    state: IngressState
    target: Target
    route: str
    path: bytes


def looked_up(state: IngressState, path: bytes) -> Place | None:
    """Where a path leads, where that is a version which is ready and the path has nothing unusual."""
    if not path.isascii() or b"%" in path or b"?" in path:
        return None
    try:
        place = placed(state, path)
    except (ModelNotFound, KeyError):
        return None
    return place if place.target.state == "ready" else None


def placed(state: IngressState, path: bytes) -> Place:
    """Where a path leads. Raises: UnknownModel; KeyError: it is none of the lane's."""
    parts = path.decode().split("/")
    route = _ROUTES[len(parts), parts[-1]]
    is_versioned = len(parts) == _VERSIONED
    if is_versioned and parts[4] != "versions":
        raise KeyError(parts[4])
    return Place(state, state.routes.resolve(parts[3], parts[5] if is_versioned else None), route, path)
