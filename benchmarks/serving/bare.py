"""The same forward behind raw uvicorn, in one process: what every other server is compared with.

    python benchmarks/serving/bare.py PORT MODEL

It reads and writes the requests of `bodies.py` as fast as Python can, and does nothing else: no key, no
limit, no batch, no metric, no second process.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import orjson
import torch
import uvicorn
import workloads

_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_EVENTS = (b"content-type", b"text/event-stream")


class Parameters(msgspec.Struct):
    """Of a tensor, as far as it is looked at."""

    binary_data_size: int = 0


class Tensor(msgspec.Struct):
    """An input."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float] = []
    parameters: Parameters | None = None


class Infer(msgspec.Struct):
    """A request of Open Inference v2, as far as it is looked at."""

    inputs: list[Tensor]


class Complete(msgspec.Struct):
    """A request for a text, as far as it is looked at."""

    prompt: str
    max_tokens: int
    temperature: float
    seed: int
    stream: bool = False


_INFER, _COMPLETE = msgspec.json.Decoder(Infer), msgspec.json.Decoder(Complete)


class App:
    """ASGI."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._module = workloads.module(name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        if scope["path"] == "/v1/completions":
            await self._complete(_COMPLETE.decode(body), send)
            return
        size = dict(scope["headers"]).get(b"inference-header-content-length")
        if size is None:
            await _answer(send, self._infer_json(body), _JSON)
        else:
            head, answer = self._infer_binary(body, int(size))
            more = (b"inference-header-content-length", b"%d" % len(head))
            await _answer(send, head + answer, _BINARY, more)

    def _infer_json(self, body: bytes) -> bytes:
        [tensor] = _INFER.decode(body).inputs
        outputs = self._forward(np.array(tensor.data, np.float32).reshape(tensor.shape))
        told = {"name": "value", "datatype": "FP32", "shape": outputs.shape, "data": outputs.ravel()}
        return orjson.dumps(
            {"model_name": self._name, "model_version": "1", "outputs": [told]},
            option=orjson.OPT_SERIALIZE_NUMPY,
        )

    def _infer_binary(self, body: bytes, size: int) -> tuple[bytes, bytes]:
        [tensor] = _INFER.decode(memoryview(body)[:size]).inputs
        # Copied: the numbers of a body may begin anywhere, and are not to be written to.
        outputs = self._forward(np.frombuffer(body, np.float32, offset=size).reshape(tensor.shape).copy())
        raw = outputs.tobytes()
        sized = {"binary_data_size": len(raw)}
        told = {"name": "value", "datatype": "FP32", "shape": outputs.shape, "parameters": sized}
        return orjson.dumps({"model_name": self._name, "model_version": "1", "outputs": [told]}), raw

    def _forward(self, values: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self._module(torch.from_numpy(values)).numpy()

    async def _complete(self, request: Complete, send: Any) -> None:
        if not request.stream:
            text = "".join(self._pieces(request))
            await _answer(send, orjson.dumps({"choices": [{"index": 0, "text": text}]}), _JSON)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [_EVENTS]})
        for piece in self._pieces(request):
            told = orjson.dumps({"choices": [{"index": 0, "text": piece, "finish_reason": None}]})
            await _more(send, b"data: " + told + b"\n\n")
            await asyncio.sleep(0)  # other streams' turn
        await _more(send, b"data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b""})

    def _pieces(self, request: Complete) -> Iterator[str]:
        from eagleray.data import ByteTokenizer
        from eagleray.inference.generation import generate
        from eagleray.protocol.generation import GenerationRequest

        asked = GenerationRequest(request.prompt, request.max_tokens, request.temperature, 1.0, request.seed)
        for chunk in generate(self._module, ByteTokenizer(), asked, context=workloads.CONTEXT):
            yield chunk.text


async def _more(send: Any, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _answer(send: Any, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    sized = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": sized})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Serve until the process is ended."""
    port, name = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    app = App(name)
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_level="error",
        timeout_keep_alive=600,
    )


if __name__ == "__main__":
    main()
