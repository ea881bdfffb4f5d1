"""Requests and responses of Open Inference v2 as JSON, and bodies that are none."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from eagleray.errors import InputError
from eagleray.protocol.infer import (
    InferRequest,
    InferResponse,
    read_request,
    read_response,
    select,
    write_request,
    write_response,
)

TENSOR = '{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, %s]}'
X = np.array([1, 2], np.float32)


def same(found: Any, expected: Any) -> bool:
    return {n: (a.dtype, a.tolist()) for n, a in found.items()} == {
        n: (a.dtype, a.tolist()) for n, a in expected.items()
    }


def test_a_request_comes_back() -> None:
    request = InferRequest({"x": X, "y": np.array(["ä"], object)}, ("label",), "42", {"priority": 1})
    found = read_request(write_request(request))
    assert (found.outputs, found.id, found.parameters) == (("label",), "42", {"priority": 1})
    assert same(found.inputs, request.inputs)
    bare = read_request(write_request(InferRequest({"x": X})))
    assert (bare.outputs, bare.id, bare.parameters) == ((), None, {})


def test_a_response_comes_back() -> None:
    found = read_response(write_response(InferResponse("digits", "2", {"x": X}, "42")))
    assert (found.model_name, found.model_version, found.id) == ("digits", "2", "42")
    assert same(found.outputs, {"x": X})


def test_the_contracts_own_example() -> None:
    body = json.dumps(
        {
            "id": "42",
            "inputs": [
                {"name": "input0", "shape": [2, 2], "datatype": "UINT32", "data": [1, 2, 3, 4]},
                {"name": "input1", "shape": [3], "datatype": "BOOL", "data": [True, False, True]},
            ],
            "outputs": [{"name": "output0"}],
        }
    )
    found = read_request(body.encode())
    assert found.inputs["input0"].tolist() == [[1, 2], [3, 4]]
    assert found.inputs["input1"].dtype == np.bool_


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty; send JSON"),
        (b"{", "the body is not JSON: Expecting property name"),
        (b'{"inputs": \xff}', "the body is not UTF-8 text (byte 11"),
        (b"\xef\xbb\xbf{}", "the body is not JSON"),
        ('{"inputs": []}'.encode("utf-16"), "the body is not UTF-8 text (byte 0"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "the body is not usable: Exceeds the limit"),
        (b"[]", "the body: expected an object, found list"),
        (b"{}", "'inputs': expected a list of one tensor or more"),
        (b'{"inputs": []}', "'inputs': expected a list"),
        (b'{"inputs": {}}', "'inputs': expected a list"),
        (TENSOR % "NaN", "the body is not usable: it has NaN, which is not JSON"),
        (TENSOR % "-Infinity", "it has -Infinity, which is not JSON"),
        (TENSOR % "1e999", "cannot hold a value of data"),
        ('{"id": 7, "inputs": [%s]}' % (TENSOR % 2), "id: expected a string"),
        ('{"parameters": [], "inputs": [%s]}' % (TENSOR % 2), None),
        ('{"parameters": [1], "inputs": [%s]}' % (TENSOR % 2), "parameters: expected an object"),
        ('{"outputs": ["y"], "inputs": [%s]}' % (TENSOR % 2), '"outputs": expected a list of objects'),
        ('{"inputs": [' + TENSOR % 2 + "," + TENSOR % 3 + "]}", "inputs[1]: 'x' is there twice"),
    ],
)  # fmt: skip
def test_a_body_that_is_no_request(body: bytes | str, message: str | None) -> None:
    raw = body if isinstance(body, bytes) else body.encode()
    if isinstance(body, str) and body.startswith('{"name"'):
        raw = b'{"inputs": [%s]}' % raw
    if message is None:
        assert read_request(raw).parameters == {}
        return
    with pytest.raises(InputError, match=re.escape(message)):
        read_request(raw)


def test_wanted_outputs() -> None:
    outputs = {"label": X, "class": X}
    assert list(select(outputs, ())) == ["label", "class"]
    assert list(select(outputs, ("class",))) == ["class"]
    with pytest.raises(InputError, match="output 'logits' is not known; this model gives: label, class"):
        select(outputs, ("logits",))
