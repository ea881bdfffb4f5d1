"""Whole HTTP requests as bytes, and what is in an answer."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HOST = "127.0.0.1"
INPUT = "features"
JSON = "application/json"
BINARY = "application/octet-stream"
JSON_BYTES = "Inference-Header-Content-Length"


def post(
    port: int, path: str, body: bytes, media_type: str = JSON, headers: Mapping[str, str] | None = None
) -> bytes:
    """A request, head and body."""
    lines = {
        "Host": f"{HOST}:{port}",
        "Accept": "*/*",
        "Content-Type": media_type,
        "Content-Length": str(len(body)),
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def bearer(key: str | None) -> dict[str, str]:
    """The header for an API key."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def infer_path(model: str) -> str:
    """Of Open Inference v2."""
    return f"/v2/models/{model}/infer"


def infer_json(port: int, model: str, values: np.ndarray, headers: Mapping[str, str] | None = None) -> bytes:
    """Open Inference v2, in JSON."""
    data = [round(float(value), 4) for value in values.ravel()]
    tensor = {"name": INPUT, "shape": list(values.shape), "datatype": "FP32", "data": data}
    return post(port, infer_path(model), json.dumps({"inputs": [tensor]}).encode(), headers=headers)


def infer_binary(
    port: int, model: str, values: np.ndarray, headers: Mapping[str, str] | None = None
) -> bytes:
    """Open Inference v2, raw numbers behind the JSON; the answer is wanted in the same form."""
    raw = np.ascontiguousarray(values, np.float32).tobytes()
    sized = {"binary_data_size": len(raw)}
    tensor = {"name": INPUT, "shape": list(values.shape), "datatype": "FP32", "parameters": sized}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    named = {JSON_BYTES: str(len(head)), **(headers or {})}
    return post(port, infer_path(model), head + raw, BINARY, named)


def completion(
    port: int,
    model: str,
    prompt: str,
    max_tokens: int,
    *,
    is_stream: bool,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """OpenAI's route for texts."""
    asked: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.7}
    return post(
        port,
        "/v1/completions",
        json.dumps({**asked, "seed": 7, "stream": is_stream}).encode(),
        headers=headers,
    )


def written(folder: Path, name: str, request: bytes) -> Path:
    """The file that has it, for the load generator."""
    path = folder / f"{name}.http"
    path.write_bytes(request)
    return path


@dataclass(frozen=True)
class Answer:
    """One answer, whole."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    def values(self) -> np.ndarray:
        """The first output of Open Inference v2, flat, float32. Raises: ValueError where there is none."""
        size = self.headers.get(JSON_BYTES.lower())
        told = json.loads(self.body if size is None else self.body[: int(size)])
        if self.status != 200 or not told.get("outputs"):
            raise ValueError(f"{self.status} {self.body[:300]!r}")
        output = told["outputs"][0]
        if "data" in output:
            return np.array(output["data"], np.float32).ravel()
        start = int(size or 0)
        return np.frombuffer(self.body[start : start + output["parameters"]["binary_data_size"]], np.float32)

    def events(self) -> list[dict[str, Any]]:
        """What server-sent events carry, without the last one, [DONE]."""
        lines = (line[5:].strip() for line in self.body.decode().splitlines() if line.startswith("data:"))
        return [json.loads(line) for line in lines if line != "[DONE]"]


def ask(port: int, request: bytes, limit_s: float = 60.0) -> Answer:
    """The answer to one request, on a connection of its own. Raises: OSError, http.client.HTTPException."""
    with socket.create_connection((HOST, port), timeout=limit_s) as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection, method="POST")
        answer.begin()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, headers, answer.read())


def is_near(found: Sequence[float] | np.ndarray, expected: np.ndarray) -> bool:
    """Whether two answers are the same but for the order of sums."""
    array = np.asarray(found, np.float32).ravel()
    return array.shape == expected.shape and bool(np.allclose(array, expected, rtol=1e-3, atol=1e-4))
