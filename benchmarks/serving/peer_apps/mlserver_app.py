"""MLServer: Open Inference v2 in one process, as it is by `parallel_workers = 0`."""

from __future__ import annotations

from forward import Forward
from mlserver import MLModel  # pyright: ignore[reportMissingImports]
from mlserver.codecs import NumpyCodec  # pyright: ignore[reportMissingImports]
from mlserver.types import InferenceRequest, InferenceResponse  # pyright: ignore[reportMissingImports]


class Tiny(MLModel):
    """The tiny model."""

    async def load(self) -> bool:
        """At the start."""
        self.forward = Forward()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The outputs."""
        outputs = self.forward(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("value", outputs, use_bytes=False)]
        )
