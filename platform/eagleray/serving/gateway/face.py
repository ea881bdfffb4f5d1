"""`Face`: one connection of a client, as uvicorn parses it."""

from __future__ import annotations

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState


class FaceState(ServerState):
    """What the connections of one gateway share."""

    def __init__(self) -> None:
        super().__init__()
        self.is_draining = False

    def begin_drain(self) -> None:
        """From now on each answer closes its connection."""
        self.is_draining = True
        for connection in self.connections:
            if (cycle := getattr(connection, "cycle", None)) is not None:
                cycle.keep_alive = False


class Face(HttpToolsProtocol):
    """As uvicorn's, where the gateway is not about to end."""

    def __init__(self, config: Config, state: FaceState) -> None:
        super().__init__(config, state, {})
        self._state = state

    def on_headers_complete(self) -> None:
        """As the base."""
        super().on_headers_complete()
        if self._state.is_draining:
            self.cycle.keep_alive = False
