"""Whatever is asked of a whole gateway (lane, links, replicas) is answered, and costs nobody anything."""

from __future__ import annotations

import io
import json
import struct
import wave
import zlib
from typing import Any

import numpy as np
import pytest

from eagleray.protocol import binary
from eagleray.protocol.infer import InferRequest
from support.serving import Pretend
from support.talking import (
    BODY,
    COMPLETE,
    DIGITS,
    INFER,
    IRIS,
    PREDICT,
    connect,
    exchange,
    laned,
    memory_mib,
    nothing_lost,
    post,
    read,
    until,
)


def of(**changes: Any) -> bytes:
    return json.dumps({"inputs": [{**IRIS["inputs"][0], **changes}]}).encode()


def tensor(**fields: str) -> bytes:
    """A request whose fields are JSON already."""
    known = {"name": '"features"', "shape": "[1,4]", "datatype": '"FP32"', "data": "[1,2,3,4]", **fields}
    return ('{"inputs":[{' + ",".join(f'"{name}":{value}' for name, value in known.items()) + "}]}").encode()


def nested(depth: int) -> str:
    return "[" * depth + "1" + "]" * depth


DEEP = nested(100_000)
MANY = ",".join(f'"k{number}":1' for number in range(50_000))
JSON: dict[str, tuple[str, bytes, str]] = {
    "another name": (INFER, of(name="feature"), "input 'feature' is not known"),
    "a name of a path": (INFER, of(name="../../etc/passwd"), "input '../../etc/passwd' is not known"),
    "a name of a megabyte": (INFER, of(name="x" * 10**6), "input 'xxxx"),
    "a name that is none": (INFER, of(name=7), "name is 7; give a string"),
    "a shape of fewer": (INFER, of(shape=[4]), "shape [4], expected [-1, 4]"),
    "a shape of more values": (INFER, of(shape=[2, 4]), "shape [2, 4] holds 8 values, and data has 4"),
    "2^31": (INFER, of(shape=[2**31, 2**33]), "more than any body holds"),
    "2^31 alone": (INFER, of(shape=[2**31]), "holds 2147483648 values, and data has 4"),
    "2^63": (INFER, of(shape=[2**63]), "more than any body holds"),
    "2^64, which is 0 of 64 bits": (INFER, of(shape=[2**32, 2**32]), "more than any body holds"),
    "beyond all words": (INFER, of(shape=[10**300] * 32), "more than any body holds"),
    "digits without end": (INFER, tensor(shape=f"[{'9' * 5000}]"), "Exceeds the limit"),
    "-1": (INFER, of(shape=[-1, 4]), "whole numbers >= 0"),
    "0": (INFER, of(shape=[0, 4], data=[]), "holds nothing; give one sample or more"),
    "0 of 2^63": (INFER, of(shape=[0, 2**63], data=[]), "more than any body holds"),
    "a million dimensions": (INFER, of(shape=[1] * 10**6), "a list of up to 32 whole numbers"),
    "half a dimension": (INFER, of(shape=[0.5, 8]), "whole numbers >= 0"),
    "true dimensions": (INFER, of(shape=[True, 4]), "whole numbers >= 0"),
    "another datatype": (INFER, of(datatype="FP64"), "datatype FP64, expected FP32"),
    "a datatype in small letters": (INFER, of(datatype="fp32"), "datatype 'fp32' is not known"),
    "a datatype with a blank": (INFER, of(datatype="FP32 "), "datatype 'FP32 ' is not known"),
    "a datatype with a zero": (INFER, of(datatype="FP32\0"), r"datatype 'FP32\x00' is not known"),
    "a datatype of Python's": (INFER, of(datatype="O"), "datatype 'O' is not known"),
    "a datatype that is a number": (INFER, of(datatype=32), "datatype 32 is not known"),
    "NaN": (INFER, tensor(data="[1,2,3,NaN]"), "it has NaN, which is not JSON"),
    "Infinity": (INFER, tensor(data="[1,2,3,-Infinity]"), "it has -Infinity, which is not JSON"),
    "1e400": (INFER, tensor(data="[1,2,3,1e400]"), "out of range, NaN or infinite"),
    "1e39": (INFER, tensor(data="[1,2,3,1e39]"), "out of range, NaN or infinite"),
    "texts": (INFER, tensor(data='["1","2","3","4"]'), "takes numbers, and data has '1'"),
    "deep": (INFER, DEEP.encode(), "nested too deeply"),
    "a deep name": (INFER, tensor(name=DEEP), "nested too deeply"),
    "a deep shape": (INFER, tensor(shape=DEEP), "nested too deeply"),
    "deep data": (INFER, tensor(data=DEEP), "nested too deeply"),
    "deep parameters": (INFER, b'{"parameters":' + DEEP.encode() + b"," + BODY[1:], "nested too deeply"),
    "a deep body for people": (PREDICT, b'{"inputs":' + DEEP.encode() + b"}", "nested too deeply"),
    "a deep prompt": (COMPLETE, b'{"model":"gpt","prompt":' + DEEP.encode() + b"}", "nested too deeply"),
    "many keys": (INFER, f"{{{MANY}}}".encode(), "'inputs': expected a list of one tensor or more"),
    "a tensor of many keys": (INFER, f'{{"inputs":[{{{MANY}}}]}}'.encode(), "'name' is required"),
    "many keys for people": (PREDICT, f"{{{MANY}}}".encode(), "unknown key 'k0'"),
    "many keys for a text": (COMPLETE, f"{{{MANY}}}".encode(), "'k0' is no field of this route"),
    "many inputs": (
        INFER,
        b'{"inputs":[%s]}' % b",".join(
            b'{"name":"%d","shape":[1],"datatype":"BOOL","data":[true]}' % number for number in range(30_000)
        ),
        "input '0' is not known",
    ),
    "no UTF-8": (INFER, BODY.replace(b"features", b"feat\xc3res"), "the body is not UTF-8 text (byte 26"),
    "no UTF-8 as a prompt": (COMPLETE, b'{"model":"gpt","prompt":"\xff"}', "the body is not UTF-8 text"),
    "half a surrogate pair": (INFER, tensor(name=r'"\ud800"'), r"input '\ud800' is not known"),
    "half of a body": (INFER, BODY[:50], "the body is not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", JSON)
def test_json_that_will_not_do(bounded: Pretend, name: str) -> None:
    path, body, said = JSON[name]
    with nothing_lost(bounded):
        [answer, after] = exchange(bounded, post(body, path), post())
    assert (answer.status, answer.headers["content-type"]) == (400, "application/json"), answer.body[:500]
    assert said in answer.error
    assert len(answer.body) < 1000, "it repeats what was sent"
    assert answer.headers["x-request-id"]
    assert after.status == 200, "on the same connection"


@pytest.mark.parametrize("size", [200_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_body_of_many_keys(size: int) -> None:
    body = ("{" + ",".join(f'"k{number}":1' for number in range(size)) + "}").encode()
    with laned(max_body_bytes=16 << 20) as ingress, nothing_lost(ingress):
        [answer, after] = exchange(ingress, post(body), post())
    assert (answer.status, "'inputs': expected a list" in answer.error, after.status) == (400, True, 200)


def test_json_that_is_just_as_deep_as_it_may_be(bounded: Pretend) -> None:
    """The stack ends while it is read, or a little later while it is looked at."""
    with nothing_lost(bounded):
        for path, body in (
            (INFER, lambda deep: tensor(name=deep)),
            (INFER, lambda deep: tensor(shape=deep)),
            (PREDICT, lambda deep: f'{{"inputs":{deep}}}'.encode()),
            (COMPLETE, lambda deep: f'{{"model":"gpt","prompt":"a","stop":{deep}}}'.encode()),
        ):
            sent = [post(body(nested(depth)), path) for depth in range(940, 1000, 1)]
            assert {answer.status for answer in exchange(bounded, *sent)} == {400}


IMAGES = np.arange(300 * 64, dtype=np.float32).reshape(300, 1, 8, 8) % 17


def raw(array: np.ndarray, name: str = "image", *, change: Any = lambda text: text, size: int = -1) -> bytes:
    """A request with raw bytes; `change` is done to its JSON, or to both."""
    written = binary.write_request(InferRequest({name: np.zeros_like(array)}))  # it sends no NaN
    text, values = change(written.body[: written.json_bytes]), array.tobytes()
    lines = f"{binary.HEADER}: {len(text) if size < 0 else size}"
    return post(text + values, DIGITS if name == "image" else f"/v2/models/{name}/infer", lines)


def replaced(old: bytes, new: bytes) -> Any:
    return lambda text: text.replace(old, new)


def spoiled(value: float) -> np.ndarray:
    array = IMAGES.copy()
    array[299, 0, 7, 7] = value
    return array


def texts(values: bytes, size: int | None = None) -> bytes:
    text = json.dumps(
        {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES",
                     "parameters": {"binary_data_size": len(values) if size is None else size}}]}
    ).encode()  # fmt: skip
    return post(text + values, "/v2/models/reviews/infer", f"{binary.HEADER}: {len(text)}")


RAW: dict[str, tuple[Any, str]] = {
    "a size too small": (lambda: raw(IMAGES, change=replaced(b"76800", b"76799")), "takes 76800 bytes, and"),
    "a size too large": (lambda: raw(IMAGES, change=replaced(b"76800", b"76804")), "takes 76800 bytes, and"),
    "a size below 0": (lambda: raw(IMAGES, change=replaced(b"76800", b"-1")), "give a whole number >= 0"),
    "2^31 bytes": (lambda: raw(IMAGES, change=replaced(b"76800", b"2147483648")), "takes 76800 bytes, and"),
    "2^63 bytes": (lambda: raw(IMAGES, change=replaced(b"76800", b"%d" % 2**63)), "takes 76800 bytes, and"),
    "a size of 4,000 digits": (
        lambda: raw(IMAGES, change=replaced(b"76800", b"9" * 4000)), "takes 76800 bytes, and"
    ),
    "shape and size of 2^40": (
        lambda: raw(
            IMAGES, change=lambda text: replaced(b"76800", b"4398046511104")(
                replaced(b"[300,1,8,8]", b"[1099511627776]")(text)
            )
        ), "the body has 76800 bytes left for it",
    ),
    "a shape of 0 of 64 bits": (
        lambda: raw(IMAGES, change=replaced(b"[300,1,8,8]", b"[4294967296,4294967296]")), "any body holds"
    ),
    "a shape of the values of others": (
        lambda: raw(IMAGES, change=replaced(b"[300,1,8,8]", b"[1,300,8,8]")), "expected [-1, 1, 8, 8]"
    ),
    "another datatype": (lambda: raw(IMAGES, change=replaced(b"FP32", b"INT32")), "INT32, expected FP32"),
    "no bytes at all": (lambda: post(b"{}", DIGITS, f"{binary.HEADER}: 2"), "'inputs': expected a list"),
    "a JSON that ends early": (lambda: raw(IMAGES, size=20), "the body's JSON is not JSON"),
    "a JSON that does not end": (lambda: raw(IMAGES, size=10**9), "and the body has 7"),
    "NaN": (lambda: raw(spoiled(np.nan)), "it has NaN or infinite values"),
    "infinite": (lambda: raw(spoiled(-np.inf)), "it has NaN or infinite values"),
    "bytes behind its values": (
        lambda: raw(IMAGES, change=lambda text: replaced(b"76800", b"76544")(
            replaced(b"[300,", b"[299,")(text)
        )), "256 bytes behind its last tensor's",
    ),
    "a text that is no UTF-8": (lambda: texts(struct.pack("<I", 2) + b"\xc3("), "is not UTF-8 text"),
    "a text of 4 GB": (lambda: texts(struct.pack("<I", 2**32 - 1)), "is 4294967295 bytes long, and 0 are"),
    "half a length of a text": (lambda: texts(b"\1\0", 4), "and the body has 2 bytes left for it"),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("is_cut", [False, True], ids=["at once", "into a slot"])
def test_raw_bytes_that_do_not_fit(bounded: Pretend, name: str, is_cut: bool) -> None:
    """What comes late is read to where the replica would read it."""
    make, said = RAW[name]
    sent = make()
    with nothing_lost(bounded), connect(bounded) as connection, connection.makefile("rb") as stream:
        first = sent.index(b"\r\n\r\n") + 4 + 1 if is_cut else len(sent)
        connection.sendall(sent[:first])
        if is_cut:
            until(lambda: bounded.metrics.in_flight == 1)
            connection.sendall(sent[first:])
        answer = read(stream)
        assert (answer.status, said in answer.error) == (400, True), answer
        connection.sendall(raw(IMAGES))
        assert read(stream).status == 200, "on the same connection"


def picture(width: int, height: int) -> bytes:
    """A PNG of so many pixels, and of none of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def sound() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(np.arange(800, dtype="<i2").tobytes())
    return out.getvalue()


FILES: dict[str, tuple[str, bytes, str]] = {
    "30,000 by 30,000 pixels": ("image/png", picture(30_000, 30_000), "more than 33554432 pixels; scale"),
    "6,000 by 6,000 pixels": ("image/png", picture(6_000, 6_000), "6000 x 6000 pixels; scale it down"),
    "2^31 by 2^31 pixels": ("image/png", picture(2**31 - 1, 2**31 - 1), "more than 33554432 pixels"),
    "too few pixels": ("image/png", picture(3_000, 3_000), "the image is damaged"),
    "no sound": ("audio/wav", sound()[:4], "the body is not a PCM WAV file"),
    "half a head of a sound": ("audio/wav", sound()[:30], "the body is not a PCM WAV file (it ends too"),
    "half a sound": ("audio/wav", sound()[:844], "the sound ends early: 1600 bytes are announced, 800 came"),
    "a sound without its last byte": ("audio/wav", sound()[:-1], "the sound ends early"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_will_not_do(bounded: Pretend, name: str) -> None:
    kind, body, said = FILES[name]
    path = "/models/digits:predict" if kind == "image/png" else "/models/tones:predict"
    before = memory_mib()
    with nothing_lost(bounded):
        [answer, after] = exchange(bounded, post(body, path, f"content-type: {kind}"), post())
    assert (answer.status, said in answer.error) == (400, True), answer
    assert after.status == 200
    assert memory_mib() - before < 200


def test_a_sound_whose_length_was_not_known_is_taken(bounded: Pretend) -> None:
    """ffmpeg writes so to a pipe."""
    body = sound()
    body = body[:4] + b"\xff" * 4 + body[8:40] + b"\xff" * 4 + body[44:]
    [answer] = exchange(bounded, post(body, "/models/tones:predict", "content-type: audio/wav"))
    assert answer.status == 200, answer


PATHS = {
    "/v2/models/../models/iris/infer": 404,
    "/v2/models/%2e%2e/infer": 404,
    "/v2/models/..%2f..%2fadmin%2fstatus/infer": 404,
    "/v2/models/iris/versions/../infer": 404,
    "/v2/models/iris/versions/%2e%2e%2f1/infer": 404,
    "/v2/models/iris/versions/1.0/infer": 404,
    "/v2/models/iris/versions/-1/infer": 404,
    "/v2/models/iris/versions/01/infer": 404,
    "/v2/models/iris/versions/%D9%A1/infer": 404,
    f"/v2/models/iris/versions/{'9' * 4400}/infer": 404,
    "/v2//models/iris/infer": 404,
    "//v2/models/iris/infer": 404,
    "/v2/models//infer": 404,
    "/v2/models/iris%00/infer": 404,
    "/v2/models/iris%0d%0aset-cookie:%20a/infer": 404,
    "/v2/models/iris;v=1/infer": 404,
    "/v2/models/IRIS/infer": 404,
    "/v2/models/iris%/infer": 404,
    "/v2/models/%ff/infer": 400,
    "/v2/models/m--iris--v1/infer": 404,
    "/v2/models/__proto__/infer": 404,
    "/models/..%2f..%2fetc%2fpasswd:predict": 404,
    "/models/iris:predict:predict": 404,
}
"""The name of an application of Serve's, m--iris--v1, leads nowhere either."""


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:60])
def test_names_with_tricks_lead_nowhere(bounded: Pretend, path: str) -> None:
    asked = len(bounded.transport.asked)
    with nothing_lost(bounded):
        [answer, after] = exchange(bounded, post(BODY, path), post())
        assert (answer.status, after.status) == (PATHS[path], 200), answer
    assert "\r" not in answer.error
    assert len(bounded.transport.asked) == asked + 2, "the good ones alone"


STEERING = (
    "serve_multiplexed_model_id: other",
    "x-request-timeout-seconds: 0.000001",
    "x-request-disconnect-disabled: 1",
    "x-session-id: other",
    "x-request-timeout-ms: 60000",
    "x-serve-app: m--digits--v2",
    "ray-serve-request-id: 7",
    "x-http-method-override: DELETE",
    "x-original-url: /admin/keys",
    "x-rewrite-url: /admin/keys",
)


@pytest.mark.parametrize("path", [INFER, "/v2/models/iris/versions/1/infer?x=1"], ids=["lane", "application"])
def test_headers_that_steer_serve_or_proxies_steer_nothing(bounded: Pretend, path: str) -> None:
    with nothing_lost(bounded):
        plain, *others = exchange(bounded, *(post(BODY, path, *line) for line in [(), *zip(STEERING)]))
    assert {(answer.status, answer.body) for answer in others} == {(200, plain.body)}


@pytest.mark.parametrize("line", ["9" * 5000, "-1", "1e3", "NaN", "٣", "18446744073709551616", "0"])
def test_times_that_are_none(bounded: Pretend, line: str) -> None:
    with nothing_lost(bounded):
        sent = post(BODY, INFER, f"x-request-timeout-ms: {line}")
        [answer] = exchange(bounded, sent)
    assert (answer.status, "expected whole milliseconds from 1 on" in answer.error) == (400, True)
