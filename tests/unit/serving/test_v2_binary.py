"""Binary tensors and packed bodies through the v2 routes, in and out."""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from typing import Any

import httpx
import numpy as np
import pytest

from eagleray.protocol import binary, infer
from eagleray.protocol.infer import InferRequest
from support.serving import Pretend, outputs_for, pretend

IMAGES = np.arange(2 * 64, dtype=np.float32).reshape(2, 1, 8, 8) % 17
INFER = "/v2/models/digits/infer"


def send(ingress: Pretend, request: InferRequest, path: str = INFER, **headers: str) -> httpx.Response:
    written = binary.write_request(request)
    header = {binary.HEADER: str(written.json_bytes)}
    return ingress.post(path, content=written.body, headers={**header, **headers})


def read(answer: httpx.Response) -> infer.InferResponse:
    assert answer.status_code == 200, answer.text
    return binary.read_response(answer.content, answer.headers.get(binary.HEADER))


def forms(answer: httpx.Response) -> dict[str, bool]:
    """Of each output, whether it came as raw bytes."""
    head = json.loads(answer.content[: int(answer.headers.get(binary.HEADER, len(answer.content)))])
    return {output["name"]: "data" not in output for output in head["outputs"]}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, {"label": False, "class": False, "probabilities": False}),
        (
            {"parameters": {"binary_data_output": True}},
            {"label": True, "class": True, "probabilities": True},
        ),
        (
            {"outputs": ("probabilities", "class"), "binary_outputs": {"probabilities": True}},
            {"probabilities": True, "class": False},
        ),
        (
            {
                "outputs": ("class", "label"),
                "parameters": {"binary_data_output": True},
                "binary_outputs": {"label": False},
            },
            {"class": True, "label": False},
        ),
    ],
    ids=["JSON", "all", "one", "all but one"],
)
@pytest.mark.parametrize("is_sent_as_json", [False, True], ids=["raw in", "JSON in"])
def test_raw_bytes_in_and_out(
    ingress: Pretend, asked: dict[str, Any], expected: dict[str, bool], is_sent_as_json: bool
) -> None:
    request = InferRequest({"image": IMAGES}, id="42", **asked)
    if is_sent_as_json:
        answer = ingress.post(INFER, content=infer.write_request(request))
    else:
        answer = send(ingress, request)
    assert forms(answer) == expected
    found = read(answer)
    assert (found.model_name, found.model_version, found.id) == ("digits", "2", "42")
    [(target, inputs)] = ingress.transport.asked
    assert np.array_equal(inputs["image"], IMAGES)
    outputs = outputs_for(target.card, inputs)
    assert {name: array.tolist() for name, array in found.outputs.items()} == {
        name: outputs[name].tolist() for name in expected
    }
    is_raw = any(expected.values())
    assert (binary.HEADER in answer.headers) == is_raw
    assert answer.headers["content-type"] == ("application/octet-stream" if is_raw else "application/json")


def test_texts_as_raw_bytes(ingress: Pretend) -> None:
    texts = np.array(["schön", "odd"], object)
    answer = send(ingress, InferRequest({"text": texts}), "/v2/models/reviews/infer")
    assert answer.json()["outputs"][0]["data"] == ["good", "good"]
    [(_, inputs)] = ingress.transport.asked
    assert inputs["text"].tolist() == ["schön", "odd"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body, header: (body[:-1], header), "binary_data_size is 512, and the body has 511 bytes"),
        (lambda body, header: (body + b"x", header), "the body has 1 bytes behind its last tensor's"),
        (lambda body, header: (body, 10**9), "Inference-Header-Content-Length is 1000000000, and the body"),
        (lambda body, header: (body, "x"), "Inference-Header-Content-Length is 'x'"),
        (lambda body, header: (body.replace(b"512", b"511"), header), "binary_data_size is 511"),
        (lambda body, header: (body.replace(b"[2,1,8,8]", b"[2,1,8,9]"), header), "takes 576 bytes, and"),
        (lambda body, header: (body.replace(b"[2,1,8,8]", b"[1,2,8,8]"), header), "expected [-1, 1, 8, 8]"),
        (lambda body, header: (body.replace(b'"image"', b'"imoge"'), header), "input 'imoge' is not known"),
        (lambda body, header: (body.replace(b"FP32", b"FP64"), header), "takes 1024 bytes, and"),
        (lambda body, header: (body.replace(b"FP32", b"UI32"), header), "datatype 'UI32' is not known"),
    ],
)  # fmt: skip
def test_a_body_whose_sizes_do_not_fit(ingress: Pretend, change: Any, message: str) -> None:
    written = binary.write_request(InferRequest({"image": IMAGES}))
    body, header = change(written.body, written.json_bytes)
    answer = ingress.post(INFER, content=body, headers={binary.HEADER: str(header)})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
    assert message in answer.json()["error"]
    assert ingress.transport.asked == []
    assert send(ingress, InferRequest({"image": IMAGES})).status_code == 200


def test_an_answer_with_nan_is_the_models_fault(ingress: Pretend) -> None:
    def spoil(outputs: dict[str, Any]) -> dict[str, Any]:
        outputs["probabilities"][0, 0] = np.inf
        return outputs

    ingress.transport.change = spoil
    answer = send(ingress, InferRequest({"image": IMAGES}, parameters={"binary_data_output": True}))
    assert answer.status_code == 500
    assert "gave no usable answer: output 'probabilities' has NaN or infinite values" in answer.text


def test_only_what_takes_long_leaves_the_loop(ingress: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    read_texts = binary._texts

    def noted(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return read_texts(*arguments)

    monkeypatch.setattr(binary, "_texts", noted)
    for size in (10, 200_000):
        texts = np.array(["a" * size], object)
        send(ingress, InferRequest({"text": texts}), "/v2/models/reviews/infer")
    loops = ("MainThread", "gateway")
    assert [thread.name in loops for thread in threads] == [True, False]


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
@pytest.mark.parametrize("is_binary", [True, False], ids=["raw", "JSON"])
def test_packed_bodies(ingress: Pretend, name: str, pack: Any, is_binary: bool) -> None:
    many = np.ones((300, 1, 8, 8), np.float32)
    written = binary.write_request(
        InferRequest({"image": many}, parameters={"binary_data_output": is_binary}), lambda _: is_binary
    )
    headers = {"content-encoding": name, "accept-encoding": name}
    if written.json_bytes is not None:
        headers[binary.HEADER] = str(written.json_bytes)
    answer = ingress.post(INFER, content=pack(written.body), headers=headers)
    assert (answer.headers["content-encoding"], answer.headers["vary"]) == (name, "accept-encoding")
    assert int(answer.headers["content-length"]) < len(answer.content) / 5
    assert read(answer).outputs["class"].tolist() == [4] * 300
    plain = send(ingress, InferRequest({"image": many}), **{"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert read(plain).outputs["class"].tolist() == [4] * 300


def test_the_limit_is_of_what_is_unpacked() -> None:
    ingress = pretend(max_body_bytes=10_000)
    body = infer.write_request(InferRequest({"image": IMAGES[:1]}))
    for blanks, status in ((10_000 - len(body), 200), (10_001 - len(body), 413)):
        packed = gzip.compress(body + b" " * blanks)
        answer = ingress.post(INFER, content=packed, headers={"content-encoding": "gzip"})
        assert answer.status_code == status, answer.text
