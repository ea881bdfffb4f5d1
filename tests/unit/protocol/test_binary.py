"""Binary tensors of Open Inference v2: they come back bit for bit, and every size is checked."""

from __future__ import annotations

import json
import re
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from eagleray.errors import InputError
from eagleray.protocol import infer, tensors
from eagleray.protocol.binary import (
    TakesLong,
    Written,
    read_request,
    read_response,
    write_request,
    write_response,
)
from eagleray.protocol.infer import InferRequest, InferResponse

NAMES = "abc"


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Of any datatype, empty ones and scalars too, in any byte order and layout."""
    datatype = draw(st.sampled_from(sorted(tensors.DTYPES)))
    dtype = tensors.DTYPES[datatype]
    shape = draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    if datatype == "BYTES":
        texts = st.text(st.characters(codec="utf-8"), max_size=5)
        count = int(np.prod(shape))
        array = np.empty(count, object)
        array[:] = draw(st.lists(texts, min_size=count, max_size=count))
        return array.reshape(shape)
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    values = npst.from_dtype(dtype, **finite)  # type: ignore[arg-type]
    array = draw(npst.arrays(dtype, shape, elements=values))
    array = array.astype(dtype.newbyteorder(">")) if draw(st.booleans()) else array
    return array.T if draw(st.booleans()) else array


def header_of(written: Written) -> str | None:
    return None if written.json_bytes is None else str(written.json_bytes)


def same(found: Any, expected: Any) -> bool:
    return list(found) == list(expected) and all(
        (found[name].dtype, found[name].shape) == (array.dtype.newbyteorder("="), array.shape)
        and found[name].tolist() == array.tolist()
        and (array.dtype.kind != "f" or np.array_equal(np.signbit(found[name]), np.signbit(array)))
        for name, array in expected.items()
    )


@given(
    st.lists(arrays(), min_size=1, max_size=3),
    st.sets(st.sampled_from(NAMES)),
    st.sampled_from([bytes, bytearray]),
)
def test_what_is_written_comes_back_bit_for_bit(found: list[Any], binary: set[str], kind: Any) -> None:
    """Some tensors as raw bytes and some as JSON, in any mixture."""
    named = dict(zip(NAMES, found, strict=False))
    written = write_request(InferRequest(named, id="7"), binary.__contains__)
    assert (written.json_bytes is None) == binary.isdisjoint(named)
    request = read_request(kind(written.body), header_of(written))
    assert same(request.inputs, named)
    assert request.id == "7"
    written = write_response(InferResponse("m", "2", named), binary.__contains__)
    response = read_response(kind(written.body), header_of(written))
    assert same(response.outputs, named)
    assert (response.model_name, response.model_version, response.id) == ("m", "2", None)


def test_nothing_is_copied() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    written = write_request(InferRequest({"x": array}))
    assert np.shares_memory(written.parts[1], array)
    body = bytearray(written.body)
    found = read_request(body, header_of(written)).inputs["x"]
    assert np.shares_memory(found, np.frombuffer(body, np.uint8))
    assert found.flags.aligned


def test_the_extensions_own_example() -> None:
    head = {
        "inputs": [
            {"name": "input0", "shape": [2, 2], "datatype": "UINT32", "parameters": {"binary_data_size": 16}},
            {"name": "input1", "shape": [3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}},
        ],
        "outputs": [{"name": "output0", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(head).encode()
    found = read_request(text + struct.pack("<4I", 1, 2, 3, 2**31) + b"\x01\x00\x01", str(len(text)))
    assert found.inputs["input0"].tolist() == [[1, 2], [3, 2**31]]
    assert found.inputs["input1"].tolist() == [True, False, True]
    assert found.is_binary("output0")


def test_which_outputs_are_to_come_as_raw_bytes() -> None:
    request = InferRequest(
        {"x": np.zeros(1)}, ("a", "b"), parameters={"binary_data_output": True}, binary_outputs={"b": False}
    )
    for found in (
        infer.read_request(infer.write_request(request)),
        read_request(write_request(request).body, header_of(write_request(request))),
    ):
        assert (found.outputs, found.binary_outputs) == (("a", "b"), {"b": False})
        assert (found.is_binary("a"), found.is_binary("b"), found.is_binary("c")) == (True, False, True)
    assert not InferRequest({}).is_binary("a")


def body_of(values: bytes = b"", **changes: Any) -> tuple[bytes, str]:
    """A request of one tensor, FP32 [2], with these bytes behind the JSON."""
    size = changes.pop("size", 8)
    entry = {"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [{**entry, **changes}]}).encode()
    return text + values, str(len(text))


FLOATS = struct.pack("<2f", 1, 2)


def text(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        (FLOATS, {"size": 4}, "shape [2] of FP32 takes 8 bytes, and binary_data_size is 4"),
        (FLOATS, {"size": 9}, "shape [2] of FP32 takes 8 bytes, and binary_data_size is 9"),
        (FLOATS, {"size": -8}, "inputs[0] 'x': binary_data_size is -8; give a whole number >= 0"),
        (FLOATS, {"size": True}, "binary_data_size is True; give a whole number >= 0"),
        (FLOATS, {"size": 8.0}, "binary_data_size is 8.0; give a whole number >= 0"),
        (FLOATS, {"size": "8"}, "binary_data_size is '8'; give a whole number >= 0"),
        (FLOATS, {"size": 10**30}, "takes 8 bytes, and binary_data_size is 1000000"),
        (FLOATS[:7], {}, "binary_data_size is 8, and the body has 7 bytes left for it"),
        (b"", {}, "binary_data_size is 8, and the body has 0 bytes left for it"),
        (FLOATS + b"abc", {}, "the body has 3 bytes behind its last tensor's; give each its binary"),
        (FLOATS, {"data": [1, 2]}, "inputs[0] 'x': it has data, and a binary_data_size too; give one"),
        (FLOATS, {"parameters": {}}, "inputs[0]: 'data' is required and missing"),
        (FLOATS, {"parameters": [8]}, "inputs[0]: 'data' is required and missing"),
        (FLOATS, {"shape": [3]}, "shape [3] of FP32 takes 12 bytes, and binary_data_size is 8"),
        (FLOATS, {"shape": [-2]}, "shape is [-2]; give a list of up to 32 whole numbers >= 0"),
        (FLOATS, {"shape": [2**31, 2**32]}, "more than any body holds"),
        (FLOATS, {"shape": [2**63]}, "more than any body holds"),
        (FLOATS, {"shape": [0, 2**63], "size": 0}, "more than any body holds"),
        (FLOATS, {"shape": [1] * 10**4}, "give a list of up to 32 whole numbers"),
        (FLOATS, {"shape": [2**40], "size": 2**42}, "binary_data_size is 4398046511104, and the body has 8"),
        (FLOATS, {"shape": [2**40], "size": 2**42, "datatype": "BYTES"}, "and the body has 8 bytes left"),
        (FLOATS, {"datatype": "BF16"}, "datatype 'BF16' is not known"),
        (struct.pack("<2f", 1, float("nan")), {}, "inputs[0] 'x': it has NaN or infinite values; give"),
        (struct.pack("<2f", 1, float("-inf")), {}, "it has NaN or infinite values; give finite ones"),
        (b"\x01\x02", {"datatype": "BOOL", "size": 2}, "BOOL is bytes of 0 and 1, and value 1 is 2"),
        (text(b"a"), {"datatype": "BYTES", "size": 5}, "shape [2] holds 2 values of 4 bytes or more, and"),
        (text(b"abcdef"), {"datatype": "BYTES", "size": 10}, "its bytes end before the length of value 1"),
        (
            struct.pack("<I", 2**32 - 1) + b"abcd",
            {"datatype": "BYTES", "size": 8},
            "value 0 is 4294967295 bytes long, and 4 are left",
        ),
        (text(b"a", b"b") + b"c", {"datatype": "BYTES", "size": 11}, "1 bytes are behind its last value, 1"),
        (text(b"a", b"\xff"), {"datatype": "BYTES", "size": 10}, "value 1 is not UTF-8 text (byte 0: inv"),
    ],
)  # fmt: skip
def test_a_size_that_does_not_fit(values: bytes, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        read_request(*body_of(values, **changes))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("x", "Inference-Header-Content-Length is 'x'; give the bytes of the JSON"),
        ("", "is ''; give the bytes of the JSON"),
        ("-1", "is '-1'; give the bytes of the JSON"),
        ("1_0", "is '1_0'; give the bytes of the JSON"),
        ("²", "is '²'; give the bytes of the JSON"),
        ("999", "is 999, and the body has 108 bytes; give those of its JSON"),
        ("9" * 5000, "and the body has 108 bytes"),
        ("0", "the body's JSON is empty; send JSON"),
        ("5", "the body's JSON is not JSON"),
        (None, "the body is not UTF-8 text"),
    ],
)
def test_a_header_that_is_no_length_of_the_json(header: str | None, message: str) -> None:
    body = body_of(FLOATS)[0]
    with pytest.raises(InputError, match=re.escape(message)):
        read_request(body[:-8] + b"\xff" * 8, header)


def test_two_tensors_share_nothing() -> None:
    """Each takes what it says, and the second what the first left."""
    entries = [
        {"name": name, "shape": [2], "datatype": "INT8", "parameters": {"binary_data_size": 2}}
        for name in "xy"
    ]
    json_bytes = json.dumps({"inputs": entries}).encode()
    found = read_request(json_bytes + b"\x01\x02\x03\x04", str(len(json_bytes)))
    assert [array.tolist() for array in found.inputs.values()] == [[1, 2], [3, 4]]
    with pytest.raises(
        InputError, match=re.escape("inputs[1] 'y': binary_data_size is 2, and the body has 1")
    ):
        read_request(json_bytes + b"\x01\x02\x03", str(len(json_bytes)))


@pytest.mark.parametrize(
    ("inputs", "is_binary", "is_long"),
    [
        ({"x": np.zeros(1000)}, True, False),
        ({"x": np.zeros(1000)}, False, True),
        ({"x": np.array(["a" * 30, "b" * 200])}, True, False),
        ({"x": np.array(["a" * 30, "b" * 400])}, True, True),
        ({"x": np.array(["a" * 200]), "y": np.array(["b" * 200])}, True, True),
    ],
    ids=["numbers", "JSON", "texts", "long texts", "many texts"],
)
def test_what_takes_long_is_known_before_it_is_done(inputs: Any, is_binary: bool, is_long: bool) -> None:
    written = write_request(InferRequest(inputs), lambda _: is_binary)
    if is_long:
        with pytest.raises(TakesLong):
            read_request(written.body, header_of(written), quick_bytes=300)
    else:
        assert read_request(written.body, header_of(written), quick_bytes=300).inputs.keys() == inputs.keys()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            {"parameters": {"binary_data_output": 1}},
            "parameters: binary_data_output is 1; give true or false",
        ),
        (
            {"outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]},
            "output 'y': binary_data is 'yes'; give true or false",
        ),
    ],
)
def test_a_wish_that_is_none(where: dict[str, Any], message: str) -> None:
    entry = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    with pytest.raises(InputError, match=re.escape(message)):
        read_request(json.dumps({"inputs": [entry], **where}).encode(), None)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1.0, np.nan]), "'x' has NaN or infinite values; only finite ones are carried"),
        (np.array([np.inf], np.float16), "'x' has NaN or infinite values"),
        (np.zeros(1, np.complex64), "arrays of complex64 have no datatype"),
        (np.array(["\ud800"], object), "'x': a text holds half a surrogate pair"),
        (np.array([b"\xff"], object), "is not UTF-8 text (byte 0)"),
        (np.array([3], object), "3 is no text"),
    ],
)
def test_an_array_that_is_not_sent(array: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        write_request(InferRequest({"x": array}))
