"""Whatever is sent, the answer says what is wrong, and the next good request is answered."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from eagleray.errors import (
    CapacityError,
    ClusterError,
    EaglerayError,
    InputError,
    ModelNotFound,
    ServiceError,
)
from eagleray.serving.transport import BadInput, Overloaded, ReplicaFailed
from support.serving import Pretend, bearer, pretend, with_model

INFER = "/v2/models/iris/infer"
LIMIT = 100_000


@pytest.fixture
def ingress() -> Iterator[Pretend]:
    """An ingress that takes 100 kB, and that still answers when the test is over."""
    ingress = pretend(max_body_bytes=LIMIT)
    yield ingress
    ingress.transport.error = None
    ingress.set(is_key_needed_for_infer=False)
    assert ingress.post(INFER, iris()).status_code == 200
    assert ingress.app.metrics.in_flight == 0


def iris(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "features", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    return {"inputs": [{**tensor, **changes}]}


def says(answer: Any, status: int, message: str) -> None:
    """The answer has this status, and an error object with this in it."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), answer.text
    values = answer.json()
    found = values["error"]["message"] if isinstance(values["error"], dict) else values["error"]
    assert message in found
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v2/models/nothing/infer", "no model 'nothing' is deployed; deployed: digits, gpt, iris"),
        ("/v2/models/digits/versions/9/infer", "model 'digits' has no deployed version '9'; deployed: 2, 3"),
        ("/v2/models/digits/versions/two/infer", "model 'digits' has no deployed version 'two'"),
        ("/v2/models/digits@prod/infer", "model 'digits' has no alias 'prod'; it has: candidate"),
        ("/models/nothing:predict", "no model 'nothing' is deployed"),
        ("/v2/models/a%23b/infer", "model 'a#b': not a name"),
        ("/v2/models/a%2Fb/infer", "model 'a/b': not a name"),
        ("/v2/models/%2e%2e/infer", "model '..': not a name"),
        ("/v2/models/..%2F..%2Fetc/infer", "model '../../etc': not a name"),
        (f"/v2/models/{'x' * 300}/infer", "model 'xxxxx"),
        ("/v2/models/%00/infer", r"model '\x00': not a name"),
        ("/v2/models/%7B%7D/infer", "model '{}': not a name"),
    ],
)
def test_a_model_that_is_not_there(ingress: Pretend, path: str, message: str) -> None:
    says(ingress.post(path, iris()), 404, message)


@pytest.mark.parametrize("model", ["nothing", "gpt@prod", "gpt/versions/9", "..", "x" * 300, "a#b"])
def test_a_model_that_is_not_there_for_openai(ingress: Pretend, model: str) -> None:
    answer = ingress.post("/v1/completions", {"model": model, "prompt": "a"})
    says(answer, 404, "model ")
    assert answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (iris(name="feature"), "input 'feature' is not known; this model takes: 'features' FP32 [-1, 4]"),
        (iris(shape=[1, 5], data=[1, 2, 3, 4, 5]), "input 'features': shape [1, 5], expected [-1, 4]"),
        (iris(shape=[4]), "input 'features': shape [4], expected [-1, 4]"),
        (iris(datatype="FP64"), "input 'features': datatype FP64, expected FP32"),
        (iris(datatype="BF16"), "datatype 'BF16' is not known; give one of: BOOL"),
        (iris(data=[1, 2, 3]), "shape [1, 4] holds 4 values, and data has 3"),
        (iris(shape=[10**300] * 32), "more than any body holds"),
        (iris(shape=[2**31, 2**33]), "more than any body holds"),
        (iris(shape=[2**63]), "more than any body holds"),
        (iris(shape=[1, -1]), "shape is [1, -1]; give a list of up to 32 whole numbers >= 0"),
        (iris(shape=[1] * 30_000), "give a list of up to 32 whole numbers >= 0"),
        (iris(shape="1,4"), "shape is '1,4'; give a list"),
        (iris(shape=[0, 10**30], data=[]), "more than any body holds"),
        (iris(data=["1", "2", "3", "4"]), "takes numbers, and data has '1' (value 0)"),
        (iris(shape=[0, 4], data=[]), "holds nothing; give one sample or more"),
        ({}, "'inputs': expected a list of one tensor or more"),
        ({**iris(), "id": "\ud800"}, "id: expected a string of valid Unicode"),
        (b'{"inputs": [NaN]}', "it has NaN, which is not JSON"),
        (b'{"inputs": \xc3\x28}', "the body is not UTF-8 text (byte 11: invalid continuation byte)"),
        (b"\x89PNG\r\n", "the body is not UTF-8 text (byte 0"),
        (b'{"inputs": [', "the body is not JSON: Expecting value (line 1, column 13)"),
        (b"", "the body is empty; send JSON"),
        (b"[" * 50_000, "nested too deeply"),
    ],
    ids=str,
)
def test_a_request_that_does_not_fit(ingress: Pretend, body: Any, message: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    says(ingress.post(INFER, content=content), 400, message)
    assert ingress.transport.asked == [], "no replica was troubled"


def in_pieces(size: int) -> Any:
    async def pieces() -> Any:
        for _ in range(size // 1000):
            yield b" " * 1000

    return pieces()


@pytest.mark.parametrize("path", [INFER, "/models/digits:predict", "/v1/completions", "/admin/deploy"])
@pytest.mark.parametrize("is_announced", [True, False], ids=["with Content-Length", "without"])
def test_a_body_ten_times_too_large(ingress: Pretend, path: str, is_announced: bool) -> None:
    content = b" " * 10 * LIMIT if is_announced else in_pieces(10 * LIMIT)
    answer = ingress.post(path, content=content, headers=bearer(ingress.admin_key))
    found = "it has 1000000" if is_announced else "101000 came and it went on"
    says(answer, 413, f"the body is larger than 100000 bytes ({found}); send less at a time")


def test_a_body_of_just_the_limit(ingress: Pretend) -> None:
    body = json.dumps(iris()).encode()
    assert ingress.post(INFER, content=body + b" " * (LIMIT - len(body))).status_code == 200
    says(ingress.post(INFER, content=body + b" " * (LIMIT - len(body) + 1)), 413, "larger than 100000 bytes")


@pytest.mark.parametrize("length", ["-5", "x", "9" * 400, "²"])
def test_a_length_that_is_none(ingress: Pretend, length: str) -> None:
    answer = ingress.post(INFER, content=b"{}", headers={b"Content-Length": length.encode()})
    assert answer.status_code in (400, 413)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "x" * 300])
def test_a_coding_that_is_not_known(ingress: Pretend, coding: str) -> None:
    answer = ingress.post(INFER, content=b"x", headers={"Content-Encoding": coding})
    says(answer, 415, f"Content-Encoding {coding[:40]!r} is not supported; send gzip or deflate, or the body")
    assert answer.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("path", [INFER, "/models/iris:predict", "/v1/completions"])
def test_packed_data_that_are_damaged(ingress: Pretend, path: str, coding: str) -> None:
    answer = ingress.post(path, content=b"no packed data", headers={"Content-Encoding": coding})
    says(answer, 400, f"the body is not {coding}: ")


def test_a_bomb_costs_no_more_than_the_limit(ingress: Pretend) -> None:
    """90 MB of blanks in 90 kB: refused at 100 kB, without the rest."""
    machine, blanks = zlib.compressobj(9, wbits=31), b" " * 2**20
    bomb = b"".join(machine.compress(blanks) for _ in range(90)) + machine.flush()
    assert len(bomb) < LIMIT
    tracemalloc.start()
    answer = ingress.post(INFER, content=bomb, headers={"Content-Encoding": "gzip"})
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    says(answer, 413, f"larger than 100000 bytes (its {len(bomb)} bytes unpack to more)")
    assert peak_bytes < 20 * LIMIT


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("image/png", b"not an image", "the body is not a PNG or JPEG image"),
        ("image/png", b"", "the body is not a PNG or JPEG image"),
        ("image/png", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "image"),
        ("audio/wav", b"RIFF....WAVE", "this model takes image [1, 8, 8], not audio"),
        ("text/csv", b"a,b\n1,2\n", "this model takes image [1, 8, 8], not tabular"),
        ("text/plain", b"hello", "this model takes image, not text"),
        ("application/json", b'{"inputs": [[1, 2], [3]]}', "data is ragged"),
        ("application/json", b'{"input": [1]}', "the body: unknown key 'input'; known: inputs"),
        ("application/json", b"{}", '"inputs" is required and missing'),
        ("application/json", b"[1, 2, 3]", "input 'image': shape [3], expected [-1, 1, 8, 8]"),
        ("application/json", b"5", "inputs: expected 'image' FP32 [-1, 1, 8, 8], or one sample of it"),
        ("application/json", b"[]", "input 'image': shape [0]"),
    ],
)
def test_a_file_that_is_none(ingress: Pretend, kind: str, body: bytes, message: str) -> None:
    answer = ingress.post("/models/digits:predict", content=body, headers={"Content-Type": kind})
    says(answer, 400, message)


def test_csv_with_an_endless_field(ingress: Pretend) -> None:
    ingress.set(limits=replace(ingress.app.state.limits, max_body_bytes=10**6))
    body = b"a,b,c,d\n" + b"1" * 200_000 + b",2,3,4\n"
    answer = ingress.post("/models/iris:predict", content=body, headers={"Content-Type": "text/csv"})
    says(answer, 400, "the body is not CSV: field larger than field limit")


@pytest.mark.parametrize("data", [b"", b"\0", b"a\0"])
def test_an_image_with_a_damaged_chunk_behind_its_pixels(ingress: Pretend, data: bytes) -> None:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    whole, chunk = buffer.getvalue(), b"iCCP" + data
    extra = struct.pack(">I", len(data)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    body = whole[:-12] + extra + whole[-12:]  # the last 12 bytes are the chunk IEND
    answer = ingress.post("/models/digits:predict", content=body, headers={"Content-Type": "image/png"})
    says(answer, 400, "the image is damaged")


def test_a_kind_of_file_that_nobody_knows(ingress: Pretend) -> None:
    headers = {"Content-Type": "application/pdf; charset=x"}
    answer = ingress.post("/models/digits:predict", content=b"%PDF", headers=headers)
    says(answer, 415, "Content-Type 'application/pdf' is not known; send one of: application/json, image/png")


@pytest.mark.parametrize(
    ("key", "status", "message"),
    [
        ("", 401, "this needs an API key: send `Authorization: Bearer er_…`"),
        ("er_00000000_" + "0" * 64, 401, "the API key is wrong or was revoked"),
        ("nonsense", 401, "the API key is wrong or was revoked"),
        ("revoked", 401, "the API key is wrong or was revoked"),
        ("other scope", 403, "the API key 'admin' has the scope admin; this needs infer"),
    ],
)
@pytest.mark.parametrize("path", [INFER, "/v1/completions", "/models/iris:predict", "/v2/models/nothing"])
def test_keys_where_inference_needs_one(
    ingress: Pretend, path: str, key: str, status: int, message: str
) -> None:
    ingress.set(is_key_needed_for_infer=True)
    ring, revoked, text = ingress.app.state.keys.create("old", ["infer"])
    ingress.set(keys=ring.revoke(revoked.id))
    key = {"revoked": text, "other scope": ingress.admin_key}.get(key, key)
    ask = ingress.get if path.endswith("nothing") else ingress.post
    answer = ask(path, headers=bearer(key) if key else {})
    says(answer, status, message)
    assert ("www-authenticate" in answer.headers) == (status == 401)
    assert ingress.post(INFER, iris(), headers=bearer(ingress.infer_key)).status_code == 200


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"])
def test_what_is_open_to_all(ingress: Pretend, path: str) -> None:
    ingress.set(is_key_needed_for_infer=True)
    answer = ingress.get(path)
    assert answer.status_code == 200
    assert "digits</a>" not in answer.text, "names are for those who have a key"


@pytest.mark.parametrize(
    ("key", "status"), [("", 401), ("er_00000000_" + "0" * 64, 401), ("infer", 403), ("admin", 200)]
)
def test_the_admin_api_always_needs_an_admin_key(ingress: Pretend, key: str, status: int) -> None:
    key = {"infer": ingress.infer_key, "admin": ingress.admin_key}.get(key, key)
    assert ingress.get("/admin/status", headers=bearer(key) if key else {}).status_code == status


def test_a_key_that_nobody_asked_for_is_no_matter_unless_it_is_a_bad_one_of_ours(ingress: Pretend) -> None:
    ring, revoked, text = ingress.app.state.keys.create("old", ["infer"])
    ingress.set(keys=ring.revoke(revoked.id))
    for fine in ("sk-none", ingress.infer_key, ingress.admin_key):
        assert ingress.post(INFER, iris(), headers=bearer(fine)).status_code == 200
    for bad in (text, "er_00000000_" + "0" * 64, "er_"):
        says(ingress.post(INFER, iris(), headers=bearer(bad)), 401, "the API key is wrong or was revoked")
    assert ingress.get("/v2/health/live", headers=bearer(text)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "message", "headers"),
    [
        ("GET", "/nothing/at/all", 404, "nothing is at '/nothing/at/all'; /docs lists what is", {}),
        ("GET", "/v1/nothing", 404, "nothing is at '/v1/nothing'", {}),
        ("GET", "/" + "x" * 3000, 404, "nothing is at '/xxxx", {}),
        ("GET", INFER, 405, f"'{INFER}' takes POST, not GET", {"allow": "POST"}),
        ("PATCH", "/admin/keys", 405, "takes GET and POST, not PATCH", {"allow": "GET, POST"}),
        ("GET", "/v2/%ff", 400, "the path is not UTF-8", {}),
    ],
)
def test_a_path_that_is_none(
    ingress: Pretend, method: str, path: str, status: int, message: str, headers: Mapping[str, str]
) -> None:
    answer = ingress.ask(method, path)
    says(answer, status, message)
    assert headers.items() <= dict(answer.headers).items()


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (BadInput("token 900 is not in 0..257"), 400, {}),
        (Overloaded("100 requests wait already", 2.3), 503, {"retry-after": "3", "retry-after-ms": "2300"}),
        (Overloaded("soon", 0.01), 503, {"retry-after": "1", "retry-after-ms": "10"}),
        (ReplicaFailed("the model is broken"), 502, {}),
        (ReplicaFailed("the replica went away", 0.5), 502, {"retry-after": "1", "retry-after-ms": "500"}),
        (ServiceError("Serve does not answer"), 503, {}),
        (EaglerayError("something of ours"), 500, {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
@pytest.mark.parametrize("path", [INFER, "/v1/completions", "/models/iris:predict"])
def test_what_a_replica_raises(
    ingress: Pretend, path: str, error: Exception, status: int, headers: Mapping[str, str]
) -> None:
    ingress.transport.error = error
    body = {"model": "gpt", "prompt": "a"} if path.startswith("/v1") else iris()
    answer = ingress.post(path, {"inputs": [1, 2, 3, 4]} if "predict" in path else body)
    says(answer, status, str(error))
    assert headers.items() <= dict(answer.headers).items()
    assert ("retry-after" in answer.headers) == ("retry-after" in headers)


def test_a_bug_is_told_by_its_request(ingress: Pretend, caplog: pytest.LogCaptureFixture) -> None:
    ingress.transport.error = KeyError("secret of the inside")
    answer = ingress.post(INFER, iris(), headers={"x-request-id": "r-7"})
    says(answer, 500, "the ingress failed; its log has the reason under request r-7")
    assert "secret" not in answer.text
    [record] = caplog.records
    assert ("r-7" in record.getMessage(), record.exc_info is not None) == (True, True)


@pytest.mark.parametrize("path", [INFER, "/v1/completions", "/models/gpt:predict"])
def test_a_replica_that_takes_too_long(path: str) -> None:
    ingress = pretend(timeout_s=0.4)
    ingress.transport.pause_s = 60
    body = {"model": "gpt", "prompt": "a"} if path.startswith("/v1") else iris()
    answer = ingress.post(path, {"inputs": "a"} if "predict" in path else body)
    says(answer, 504, "did not answer within 0.4 s")
    assert ingress.transport.num_open == 0


@pytest.mark.parametrize(
    ("state", "message", "has_retry"),
    [
        ("starting", "model 'iris' version 1 is starting; try again in a moment", True),
        ("failed", "model 'iris' version 1 is failed: no CUDA", False),
        ("stopping", "model 'iris' version 1 is stopping: no CUDA", False),
    ],
)
def test_a_version_that_is_not_ready(ingress: Pretend, state: str, message: str, has_retry: bool) -> None:
    good = ingress.app.state.routes
    route = good.models["iris"]
    waiting = replace(route.versions[1], state=state, message="no CUDA")
    ingress.set(routes=with_model(good, "iris", replace(route, versions={1: waiting})))
    answer = ingress.post(INFER, iris())
    says(answer, 503, message)
    assert ("retry-after" in answer.headers) == has_retry
    ready = ingress.get("/v2/models/iris/ready")
    assert (ready.status_code, ready.json()["ready"]) == (503, False)
    assert ingress.get("/v2/health/ready").json() == {"ready": False, "error": "1 of 5 models not ready"}
    ingress.set(routes=good)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("no"), 400),
        (ModelNotFound("no"), 404),
        (CapacityError("no node has a GPU"), 409),
        (ServiceError("the controller is away"), 503),
        (ClusterError("no"), 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_the_control_plane_raises(ingress: Pretend, error: EaglerayError, status: int) -> None:
    ingress.admin.error = error
    answer = ingress.post("/admin/deploy", {"name": "iris"}, headers=bearer(ingress.admin_key))
    says(answer, status, str(error))


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/admin/deploy", [], "the body: expected a service spec"),
        ("/admin/undeploy", {}, "name: expected the name of a deployed model"),
        ("/admin/undeploy", {"name": "iris", "version": "1"}, "version: expected a whole number from 1 on"),
        ("/admin/undeploy", {"name": "iris", "versions": 1}, "unknown key 'versions'; known: name, version"),
        ("/admin/models/iris/promote", {"alias": "x"}, "version: expected a whole number"),
        ("/admin/models/iris/promote", {"version": 1}, "alias: expected a string"),
        ("/admin/models/iris/promote", {"version": True, "alias": "x"}, "version: expected a whole number"),
        ("/admin/keys", {"name": 7}, "name: expected a string to know the key by"),
        ("/admin/keys", {"name": "x", "scopes": "admin"}, 'scopes: expected a list of "infer" and "admin"'),
        ("/admin/keys", {"name": "x", "scopes": ["root"]}, "scope 'root' is not known"),
        ("/admin/keys", 5, "the body: expected an object with name and scopes"),
    ],
)
def test_an_admin_body_that_does_not_fit(ingress: Pretend, path: str, body: Any, message: str) -> None:
    says(ingress.post(path, body, headers=bearer(ingress.admin_key)), 400, message)
