"""Arrays to and from the JSON form of Open Inference v2, and every way in which they may not fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from eagleray.errors import InputError
from eagleray.protocol import infer, tensors

NUMBERS = [name for name in tensors.DTYPES if name != "BYTES"]


def entry(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4.5], **changes}


@given(st.data())
def test_an_array_comes_back_bit_for_bit(data: st.DataObject) -> None:
    datatype = data.draw(st.sampled_from(NUMBERS))
    dtype = tensors.DTYPES[datatype]
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    values = npst.from_dtype(dtype, **finite)  # type: ignore[arg-type]
    array = data.draw(npst.arrays(dtype, npst.array_shapes(min_dims=1, max_dims=3), elements=values))
    body = infer.write_request(infer.InferRequest({"x": array}))
    found = infer.read_request(body).inputs["x"]
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "ä € 😀", ""]),
        np.array(["a", "ä € 😀", ""], object),
        np.array([b"a", "ä € 😀".encode(), b""], object),
    ],
    ids=["U", "object", "bytes"],
)
def test_text_is_bytes(array: Any) -> None:
    values = tensors.to_json("t", array)
    assert values == {"name": "t", "datatype": "BYTES", "shape": [3], "data": ["a", "ä € 😀", ""]}
    name, back = tensors.from_json(values, "inputs[0]")
    assert (name, back.dtype, list(back)) == ("t", np.dtype(object), ["a", "ä € 😀", ""])


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]]], ids=["flat", "nested"])
def test_data_is_flat_or_nested_as_the_shape(data: Any) -> None:
    _, array = tensors.from_json(entry(data=data), "inputs[0]")
    assert array.tolist() == [[1, 2], [3, 4]]


def test_a_scalar_and_an_empty_tensor() -> None:
    assert tensors.from_json(entry(shape=[], data=[7]), "x")[1].shape == ()
    assert tensors.from_json(entry(shape=[0, 3], data=[]), "x")[1].shape == (0, 3)


def test_other_byte_orders_have_the_same_datatype() -> None:
    assert tensors.datatype_of(np.zeros(1, ">f4")) == "FP32"
    assert tensors.to_json("x", np.array([1.5], ">f4"))["data"] == [1.5]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([1], "inputs[0]: expected an object with name, shape, datatype and data"),
        ({"name": "x"}, "inputs[0]: 'shape' is required and missing"),
        (entry(name=7), "inputs[0]: name is 7; give a string"),
        (entry(datatype="FLOAT"), "inputs[0] 'x': datatype 'FLOAT' is not known; give one of: BOOL, UINT8"),
        (entry(datatype=["FP32"]), "datatype ['FP32'] is not known"),
        (entry(shape=[2, -1]), "inputs[0] 'x': shape is [2, -1]; give a list of up to 32 whole numbers >= 0"),
        (entry(shape=[2, 2.0]), "shape is [2, 2.0]"),
        (entry(shape=[True, 4]), "shape is [True, 4]"),
        (entry(shape="2x2"), "shape is '2x2'"),
        (entry(shape=[1] * 33), "give a list of up to 32"),
        (entry(data=[1, 2, 3]), "inputs[0] 'x': shape [2, 2] holds 4 values, and data has 3"),
        (entry(shape=[10**30, 10**30]), "more than any body holds"),
        (entry(shape=[10**300] * 32), "more than any body holds"),
        (entry(shape=[0, 2**41], data=[]), "more than any body holds"),
        (entry(data=5), "inputs[0] 'x': data is 5; give a list"),
        (entry(data=[[1, 2], [3]]), "data is ragged"),
        (entry(data=[[1, 2], 3]), "data is ragged"),
        (entry(data=[[1, 2, 3, 4]]), "data is nested as [1, 4], and shape says [2, 2]"),
        (entry(data=[1, 2, 3, "4"]), "datatype FP32 takes numbers, and data has '4' (value 3)"),
        (entry(data=[1, None, 3, 4]), "takes numbers, and data has None (value 1)"),
        (entry(data=[True, 2, 3, 4]), "takes numbers, and data has True (value 0)"),
        (entry(data=[1, {}, 3, 4]), "takes numbers, and data has {} (value 1)"),
        (entry(datatype="INT64"), "datatype INT64 takes whole numbers, and data has 4.5 (value 3)"),
        (entry(datatype="BOOL", data=[1, 0, 1, 0]), "BOOL takes true or false, and data has 1 (value 0)"),
        (entry(datatype="BYTES"), "BYTES takes strings, and data has 1 (value 0)"),
        (entry(datatype="INT8", data=[1, 2, 3, 300]), "INT8 holds -128 to 127, and data has 300"),
        (entry(datatype="UINT64", data=[1, 2, 3, -1]), "holds 0 to 18446744073709551615, and data has -1"),
        (entry(datatype="INT64", data=[1, 2, 3, 2**63]), "INT64 holds"),
        (entry(data=[1, 2, 3, 1e39]), "datatype FP32 cannot hold a value of data"),
        (entry(data=[1, 2, 3, float("inf")]), "datatype FP32 cannot hold a value of data"),
        (entry(data=[1, 2, 3, 10**400]), "datatype FP32 cannot hold a value of data"),
        (entry(datatype="BYTES", data=["a", "\ud800", "b", "c"]), "has half a surrogate pair"),
    ],
)
def test_a_wrong_tensor_is_said(wrong: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        tensors.from_json(wrong, "inputs[0]")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1.0, np.nan]), "'x' has NaN or infinite values; only finite ones are carried"),
        (np.array([np.inf], np.float16), "NaN or infinite"),
        (np.zeros(1, np.complex64), "arrays of complex64 have no datatype; give one of: BOOL"),
        (np.zeros(1, "datetime64[s]"), "have no datatype"),
        (np.array([b"\xff"], object), "is not UTF-8 text (byte 0)"),
        (np.array([3], object), "3 is no text"),
    ],
)
def test_an_array_that_json_cannot_carry(array: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        tensors.to_json("x", array)


@dataclass
class Info:
    name: str
    datatype: str
    shape: tuple[int, ...]


EXPECTED = [Info("image", "FP32", (-1, 1, 8, 8)), Info("scale", "FP32", (-1,))]
GOOD = {"image": np.zeros((2, 1, 8, 8), np.float32), "scale": np.zeros(2, np.float32)}


def test_what_fits_a_card() -> None:
    tensors.check(GOOD, EXPECTED)
    tensors.check({"t": np.array(["a"])}, [Info("t", "BYTES", (-1,))])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imgae": np.zeros(1)}, "input 'imgae' is not known; this model takes: 'image' FP32 [-1, 1, 8, 8]"),
        ({"scale": None}, "input 'scale' is missing; this model takes: 'image'"),
        ({"scale": np.zeros(2)}, "input 'scale': datatype FP64, expected FP32"),
        (
            {"image": np.zeros((2, 8, 8), np.float32)},
            "input 'image': shape [2, 8, 8], expected [-1, 1, 8, 8] (-1: any size)",
        ),
        ({"image": np.zeros((2, 1, 8, 9), np.float32)}, "shape [2, 1, 8, 9], expected"),
        ({"scale": np.zeros(3, np.float32)}, "first dimensions, the batch, differ: 'image' 2, 'scale' 3"),
        ({"scale": np.zeros(0, np.float32)}, "shape [0] holds nothing; give one sample or more"),
    ],
)
def test_what_does_not_fit_a_card(changes: dict[str, Any], message: str) -> None:
    inputs = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    with pytest.raises(InputError, match=re.escape(message)):
        tensors.check(inputs, EXPECTED)
