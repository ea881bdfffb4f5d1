"""The fast path takes what binary.py takes, to the same values, and refuses what it refuses in its words."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.errors import InputError
from eagleray.protocol import binary, fast, infer, tensors
from eagleray.protocol.infer import InferRequest, InferResponse
from unit.protocol.test_binary import arrays, header_of, same


def outcome(read: Any, body: bytes, header: str | None = None) -> Any:
    """All that there is to know of the request, bit for bit, or why it is refused."""
    try:
        found = read(body, header)
    except InputError as error:
        return f"refused: {error}"
    inputs = {
        name: (array.dtype.str, array.shape, array.tolist() if array.dtype.hasobject else array.tobytes())
        for name, array in found.inputs.items()
    }
    rest = (found.outputs, found.id, found.parameters, found.binary_outputs)
    return list(inputs.items()), repr(rest), found.is_binary("x")


def agree(body: bytes, header: str | None = None) -> Any:
    """Hold one way against the other. Returns: what both make of the body."""
    found = outcome(fast.read_request, body, header)
    assert found == outcome(binary.read_request, body, header)
    if header is None and b"binary_data_size" not in body:
        assert found == outcome(lambda body, _: infer.read_request(body), body)
    return found


X = '"x"'
TENSOR = '{"name": %s, "shape": %s, "datatype": %s, "data": %s}'
NUMBERS = [
    "1", "0", "-0", "-1", "1.5", "-0.0", "1.0", "1e2", "1E+2", "1e-400", "1e400", "-1e400", "3.4028235e38",
    "3.4028236e38", "1e39", "65504", "65519", "65520", "127", "128", "-128", "-129", "255", "256", "32768",
    "65536", "2147483648", "4294967295", "4294967296", "9223372036854775807", "9223372036854775808",
    "-9223372036854775809", "18446744073709551615", "18446744073709551616", "0.1", "5e-324",
    "9007199254740993", "1" + "0" * 400, "9" * 5000, "0." + "1" * 5000, "16777217", "NaN", "Infinity",
    "-Infinity", "nan", "01", "1.", ".5", "+1", "-", "1e", "0x1", "1_0",
]  # fmt: skip
ODD = [
    "true", "false", "null", '"1"', '""', "[]", "{}", "[1]", "[[1], [2]]", '"\\ud800"', '"\\ud83d\\ude00"',
    '"\\udc00"', '"a\\u0000b"', '"\\/"', '"\\x"', '"a\nb"', '"ä"', '"\x7f"', '"\u2028"', "'a'", "", ",", "1,",
    "undefined", "[1, [2]]", '{"a": 1}', "[NaN]",
]  # fmt: skip

FITTING = {
    "f": [
        "1",
        "0",
        "-0",
        "-0.0",
        "1.5",
        "1e2",
        "1E+2",
        "1e-400",
        "0.1",
        "5e-324",
        "16777217",
        "65504",
        "65519",
    ],
    "i": ["0", "1", "-0", "127", "-128"],
    "u": ["0", "1", "-0", "255"],
    "b": ["true", "false"],
    "O": ['"a"', '""', '"\\ud83d\\ude00"', '"\\/"', '"ä"', '"\x7f"', '"\u2028"'],
}
shapes = st.lists(st.sampled_from([0, 1, 2, 3, 4, -1, 2**31, 2**41, 10**300]), max_size=3).map(json.dumps)


def mostly(usual: st.SearchStrategy[str], odd: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Nine in ten are usual: else hardly a whole body would be."""
    return st.integers(0, 9).flatmap(lambda number: usual if number else odd)


@st.composite
def tensor(draw: st.DrawFn) -> str:
    datatype = draw(st.sampled_from(sorted(tensors.DTYPES)))
    kind = tensors.DTYPES[datatype].kind
    fitting = st.sampled_from(FITTING[kind])
    if kind == "f":
        fitting |= st.floats(width=16, allow_nan=False, allow_infinity=False).map(repr)
    value = mostly(fitting, st.sampled_from(NUMBERS) | st.sampled_from(ODD))
    values = draw(st.lists(value, max_size=4))
    name = mostly(
        st.sampled_from(['"x"', '"y"', '"z"', '""', '"\\u0078"', '"ä"']), st.sampled_from(["7", '"\\ud800"'])
    )
    found = TENSOR % (
        draw(name),
        draw(mostly(st.just(f"[{len(values)}]"), shapes)),
        json.dumps(draw(mostly(st.just(datatype), st.sampled_from([*tensors.DTYPES, "BF16", "fp32"])))),
        draw(mostly(st.just(f"[{', '.join(values)}]"), st.sampled_from(ODD))),
    )
    more = st.sampled_from(
        [', "parameters": {}', ', "parameters": {"binary_data_size": 0}', ', "name": "z"', ', "data": [1]',
         ', "more": 1', ', "parameters": null', ', "shape": [1]', ', "parameters": {"a": NaN}']
    )  # fmt: skip
    return found[:-1] + draw(mostly(st.just(""), more)) + "}"


@st.composite
def requests(draw: st.DrawFn) -> str:
    inputs = ", ".join(draw(st.lists(tensor(), min_size=1, max_size=2)))
    members = [
        draw(mostly(st.just(f'"inputs": [{inputs}]'), st.sampled_from(['"inputs": []', '"input": 1'])))
    ]
    for key, choices in {
        "id": ['"7"', '""', "7", "null", '"\\ud800"', '"\\u0037"', '"a\x01"'],
        "outputs": ["[]", "null", '[{"name": "y"}]', '[{"name": 1}]', '["y"]', "{}",
                    '[{"name": "y", "a": 1}]',
                    '[{"name": "x", "parameters": {"binary_data": true}}]',
                    '[{"name": "x", "parameters": {"binary_data": 1}}]',
                    '[{"name": "x", "parameters": {"binary_data": true, "classification": 2}}]',
                    '[{"name": "x", "parameters": null}]',
                    '[{"name": "x"}, {"name": "x", "parameters": {"binary_data": false}}]'],
        "parameters": ["{}", "null", "[]", "[1]", "0", '{"a": 1, "a": 2.0}', '{"a": [1]}', '{"a": NaN}',
                       '{"a": null, "b": true, "c": "x", "d": 1.0, "e": 1e2, "f": 123456789012345678901234}',
                       '{"binary_data_output": true}', '{"binary_data_output": 1}', '{"a": 1e400}'],
        "more": ["1"],
    }.items():  # fmt: skip
        if draw(st.integers(0, 3)) == 0:
            members.append(f'"{key}": {draw(st.sampled_from(choices))}')
    return "{" + ", ".join(draw(st.permutations(members))) + "}"


@given(requests())
def test_both_ways_agree_on_any_body(body: str) -> None:
    agree(body.encode("utf-8", "surrogatepass"))


@given(st.data())
def test_both_ways_agree_on_a_damaged_body(data: st.DataObject) -> None:
    """A byte more, a byte less, or another one, anywhere in the JSON or behind it."""
    is_binary = data.draw(st.booleans())
    inputs = {"x": np.array([1.5, -2]), "y": np.array(["a", "ä"]), "z": np.array([True, False])}
    written = binary.write_request(InferRequest(inputs, ("p",), "7"), lambda name: is_binary and name != "x")
    body = bytearray(written.body)
    at, byte = data.draw(st.integers(0, len(body) - 1)), data.draw(st.integers(0, 255))
    change = data.draw(st.sampled_from(["more", "less", "other"]))
    body[at : at + (change != "more")] = b"" if change == "less" else bytes([byte])
    agree(bytes(body), header_of(written))


@given(arrays(), st.booleans())
def test_the_usual_needs_no_second_reading(array: Any, is_binary: bool) -> None:
    request = InferRequest({"x": array}, ("p",), "7", {"priority": 1}, {"p": True})
    written = binary.write_request(request, lambda _: is_binary)
    body, header = written.body, header_of(written)
    expected = agree(body, header)
    with pytest.MonkeyPatch.context() as patch:
        if array.size:
            patch.setattr(binary, "read_request", None)
        assert outcome(fast.read_request, body, header) == expected


ONE = TENSOR % (X, "[1]", '"FP32"', "[1]")


def request_of(*inputs: str) -> bytes:
    return f'{{"inputs": [{", ".join(inputs)}]}}'.encode()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ((X, "[1]", '"FP32"', "[NaN]"), "it has NaN, which is not JSON"),
        ((X, "[1]", '"FP32"', "[-Infinity]"), "it has -Infinity, which is not JSON"),
        ((X, "[1]", '"FP64"', "[1e400]"), "out of range, NaN or infinite"),
        ((X, "[1]", '"FP32"', "[1e39]"), "out of range, NaN or infinite"),
        ((X, "[1]", '"FP16"', "[65520]"), "out of range, NaN or infinite"),
        ((X, "[1]", '"FP32"', "[true]"), "takes numbers, and data has True"),
        ((X, "[1]", '"INT8"', "[1.0]"), "takes whole numbers, and data has 1.0"),
        ((X, "[1]", '"INT8"', "[128]"), "INT8 holds -128 to 127, and data has 128"),
        ((X, "[1]", '"BOOL"', "[1]"), "takes true or false, and data has 1"),
        ((X, "[-1, -1]", '"FP32"', "[1]"), "shape is [-1, -1]; give a list"),
        ((X, str([1] * 33), '"FP32"', "[1]"), "give a list of up to 32"),
        ((X, str([0, 2**41]), '"FP32"', "[]"), "more than any body holds"),
        ((X, "[2]", '"FP32"', "[[1], [2]]"), "data is nested as [2, 1], and shape says [2]"),
        ((X, "[1]", '"INT64"', f"[{'9' * 5000}]"), "Exceeds the limit"),
        ((X, "[1]", '"INT64"', f"[{2**63}]"), "INT64 holds"),
        ((X, "[1]", '"BYTES"', '["\\ud800"]'), "half a surrogate pair"),
        ((X, "[1]", '"FP8"', "[1]"), "datatype 'FP8' is not known"),
        ((X, "[1]", '"FP32"', "[" * 100_000), "nested too deeply"),
        ((X, "[" * 100_000, '"FP32"', "[1]"), "nested too deeply"),
        (('"x", "parameters": ' + '{"a":' * 100_000, "[1]", '"FP32"', "[1]"), "nested too deeply"),
    ],
    ids=lambda value: str(value)[-60:],
)
def test_a_wrong_tensor_is_said_in_one_wording(tensor: tuple[str, ...], message: str) -> None:
    assert message in agree(request_of(TENSOR % tensor))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty; send JSON"),
        (b"[" * 100_000, "nested too deeply"),
        ("\ufeff{}".encode(), "the body is not JSON"),
        (request_of(ONE, ONE), "inputs[1]: 'x' is there twice"),
        (request_of(ONE) + b"{}", "the body is not JSON: Extra data"),
        (request_of(ONE)[:-1] + b', "parameters": {"a": ' + b"[" * 100_000, "nested too deeply"),
    ],
    ids=lambda value: str(value)[-60:],
)
def test_a_wrong_body_is_said_in_one_wording(body: bytes, message: str) -> None:
    assert message in agree(body)


def test_nested_data_are_taken_too() -> None:
    nested = agree(request_of(TENSOR % (X, "[2, 1]", '"FP32"', "[[1], [2]]")))
    assert nested == agree(request_of(TENSOR % (X, "[2, 1]", '"FP32"', "[1, 2]")))


def test_bad_utf8_is_refused_wherever_it_is() -> None:
    members = b'"id": "a", "outputs": [{"name": "a"}], "parameters": {"a": "a"}'
    body = request_of(ONE)[:-1] + b", " + members + b"}"
    for at in range(len(body)):
        if body[at : at + 1] == b"a":
            assert "not UTF-8 text" in agree(body[:at] + b"\xff" + body[at + 1 :])


@pytest.mark.parametrize("size", [10**5, pytest.param(10**6, marks=pytest.mark.slow)])
def test_a_body_of_many_keys(size: int) -> None:
    keys = [f'"k{index}": 1' for index in range(size)]
    inputs = request_of(ONE)[:-1].decode()
    found = outcome(fast.read_request, f"{inputs}, {', '.join(keys)}}}".encode())
    assert found == agree(request_of(ONE))
    agree(f'{inputs}, "parameters": {{{", ".join(keys[: 10**4])}}}}}'.encode())


def test_what_takes_long_is_not_begun() -> None:
    body = infer.write_request(InferRequest({"x": np.zeros(100)}))
    with pytest.raises(binary.TakesLong):
        fast.read_request(body, quick_bytes=len(body) - 1)
    assert fast.read_request(body, quick_bytes=len(body)).inputs["x"].shape == (100,)


@given(st.lists(arrays(), min_size=1, max_size=3), st.sets(st.sampled_from("abc")))
def test_answers_are_read_as_what_they_were(found: list[Any], is_binary: set[str]) -> None:
    named = dict(zip("abc", found, strict=False))
    response = InferResponse("m", "2", named, "7")
    written = fast.write_response(response, is_binary.__contains__)
    read = binary.read_response(written.body, header_of(written))
    assert (read.model_name, read.model_version, read.id) == ("m", "2", "7")
    assert same(read.outputs, named)


@pytest.mark.parametrize(
    "array",
    [np.array([np.nan]), np.array([np.inf], np.float16), np.array(["\ud800"], object), np.array([3], object),
     np.array([b"\xff"], object), np.zeros(1, np.complex64), np.array([1.5], ">f4")],
    ids=["nan", "inf", "surrogate", "number", "bytes", "complex", "big-endian"],
)  # fmt: skip
@pytest.mark.parametrize("is_binary", [True, False])
def test_an_answer_that_is_none(array: Any, is_binary: bool) -> None:
    """Refused in the same words; another byte order is written all the same."""
    found: list[str] = []
    for write in (fast.write_response, binary.write_response):
        try:
            found.append(str(write(InferResponse("m", "1", {"x": array}), lambda _: is_binary).body))
        except InputError as error:
            found.append(f"refused: {error}")
    assert found[0] == found[1]
