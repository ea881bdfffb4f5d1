"""BentoML: one worker: `bentoml serve bento_app:Tiny`."""

from __future__ import annotations

import bentoml  # pyright: ignore[reportMissingImports]
from forward import Forward


@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Tiny:
    """{"input": [16 numbers]} to [10 numbers]."""

    def __init__(self) -> None:
        self.forward = Forward()

    @bentoml.api
    async def predict(self, input: list[float]) -> list[float]:  # noqa: A002 -- the name on the wire
        """In the event loop: a thread for so small a model costs more than it saves."""
        return self.forward([input])[0].tolist()
