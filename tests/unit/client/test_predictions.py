"""How predictions travel: as raw bytes, again where they were lost, and many at once."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from eagleray.client import AsyncClient, BusyError, Client
from eagleray.client.errors import TryAgainError, refusal
from eagleray.errors import CapacityError, EaglerayError, InputError, ModelNotFound, ServiceError
from eagleray.protocol import binary, infer
from eagleray.protocol.infer import InferResponse
from eagleray.serving.ingress import v2
from eagleray.serving.ingress.http import HttpError
from eagleray.serving.transport import Overloaded, ReplicaFailed
from support.serving import Pretend, PretendTransport, pretend, serving
from unit.client.test_client import Blocking, until

IMAGES = (np.arange(8 * 64, dtype=np.float32) % 17).reshape(8, 1, 8, 8)
LABELS = [str(int(image.sum()) % 10) for image in IMAGES]


@dataclass
class Noting:
    """The app, and what each request to it had for path and headers."""

    app: Any
    seen: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            self.seen.append((scope["path"], headers, scope["client"]))
        await self.app(scope, receive, send)

    def infers(self) -> list[dict[str, str]]:
        """The headers of inferences."""
        return [headers for path, headers, _ in self.seen if path.endswith("/infer")]

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.seen]


@pytest.fixture(scope="module")
def server() -> Iterator[Pretend]:
    ingress = pretend()
    with serving(replace(ingress, app=Noting(ingress.app))) as server:  # type: ignore[arg-type]
        yield server


@pytest.fixture
def noting(server: Pretend) -> Noting:
    server.transport.__init__()
    server.app.seen.clear()  # type: ignore[attr-defined]
    return server.app  # type: ignore[return-value]


@pytest.fixture(params=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return Client if request.param == "Client" else Blocking


@pytest.fixture
def client(server: Pretend, noting: Noting, connect: Callable[..., Any]) -> Iterator[Any]:
    with connect(server.url) as client:
        yield client


def test_tensors_travel_as_raw_bytes(server: Pretend, noting: Noting, client: Any) -> None:
    for _ in range(2):
        found = client.predict("digits", IMAGES)
        assert found.labels == LABELS
    assert client.predict("reviews", ["schön", "odd"]).labels == ["good", "good"]
    assert server.transport.asked[-1][1]["text"].tolist() == ["schön", "odd"]
    once = ["/v2/models/digits", "/v2"]
    assert noting.paths()[:4] == [*once, "/v2/models/digits/infer", "/v2/models/digits/infer"]
    for headers in noting.infers():
        assert headers["content-type"] == "application/octet-stream"
        assert int(headers["inference-header-content-length"]) < int(headers["content-length"])
        assert headers["accept-encoding"] == "identity"
    for array in found.outputs.values():
        array[:] = array[::-1].copy()  # a result is its owner's
        assert array.flags.aligned
    assert found.labels == LABELS[::-1]


def test_a_server_without_them_gets_json(
    noting: Noting, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(v2, "EXTENSIONS", ())
    for _ in range(2):
        assert client.predict("digits", IMAGES).labels == LABELS
    assert noting.paths().count("/v2") == 1
    for headers in noting.infers():
        assert headers["content-type"] == "application/json"
        assert "inference-header-content-length" not in headers


def test_a_server_that_no_longer_takes_them_gets_json(
    noting: Noting, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older version may come back while a client lives."""
    assert client.predict("digits", IMAGES).labels == LABELS
    read = v2._request

    async def older(call: Any, body: bytes) -> Any:
        if binary.HEADER in call.request.headers:
            raise HttpError(400, "binary tensors are not supported yet; send JSON (binary_data=False)")
        return await read(call, body)

    monkeypatch.setattr(v2, "EXTENSIONS", ())
    monkeypatch.setattr(v2, "_request", older)
    for _ in range(2):
        assert client.predict("digits", IMAGES).labels == LABELS
    assert len(noting.infers()) == 4, "it was refused once"


class Failing(PretendTransport):
    """Raises what it has, one after the other, then answers."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)

    async def infer(self, *arguments: Any, **more: Any) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return await super().infer(*arguments, **more)


AWAY, BUSY = ReplicaFailed("the replica went away", 0.01), Overloaded("100 requests wait", 0.01)


def test_every_attempt_has_the_key_of_its_prediction(
    noting: Noting, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noting.app, "_transport", Failing(AWAY, BUSY, AWAY))
    for _ in range(2):
        assert client.predict("digits", IMAGES).labels == LABELS
    keys = [headers["idempotency-key"] for headers in noting.infers()]
    assert len(keys) == 5
    assert keys[0] == keys[1] == keys[2] == keys[3] != keys[4]
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)
    client.predict_file("iris", b'{"inputs": [1, 2, 3, 4]}', "application/json")
    assert noting.seen[-1][1]["idempotency-key"] not in keys


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ReplicaFailed("the model is broken"), ServiceError),
        (EaglerayError("something of ours"), ServiceError),
        (InputError("token 900 is not in 0..257"), InputError),
        (ModelNotFound("no such version"), ModelNotFound),
        (CapacityError("no node has a GPU"), CapacityError),
        (HttpError(413, "the body is too large"), InputError),
        (HttpError(409, "not now", {"retry-after": "0"}), CapacityError),
    ],
    ids=["502 without Retry-After", "500", "400", "404", "409", "413", "409 with Retry-After"],
)
def test_what_would_fail_again_is_not_sent_again(
    noting: Noting, client: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception]
) -> None:
    monkeypatch.setattr(noting.app, "_transport", Failing(*[error] * 9))
    with pytest.raises(kind, match=str(error)):
        client.predict("digits", IMAGES)
    assert len(noting.infers()) == 1


@pytest.mark.parametrize("error", [AWAY, BUSY], ids=["502", "503"])
def test_attempts_and_time_are_bounded(
    server: Pretend, noting: Noting, connect: Any, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    monkeypatch.setattr(noting.app, "_transport", Failing(*[error] * 9))
    with connect(server.url, max_attempts=3) as client, pytest.raises(ServiceError, match=str(error)):
        client.predict("digits", IMAGES)
    assert len(noting.infers()) == 3
    later = type(error)("in an hour", 3600)
    monkeypatch.setattr(noting.app, "_transport", Failing(later))
    started_s = time.monotonic()
    with connect(server.url) as client, pytest.raises(ServiceError, match="in an hour"):
        client.predict("digits", IMAGES)
    assert time.monotonic() - started_s < 30


@pytest.mark.parametrize(
    ("status", "headers", "is_again"),
    [
        (502, {"retry-after": "2"}, True),
        (502, {}, False),
        (502, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, False),
        (500, {"retry-after": "2"}, False),
        (504, {"retry-after": "2"}, False),
    ],
)
def test_what_is_worth_another_try(status: int, headers: dict[str, str], is_again: bool) -> None:
    found = refusal(status, headers, b"", "http://127.0.0.1:8000")
    assert isinstance(found, TryAgainError) == is_again
    assert not isinstance(found, BusyError)


class Scripted:
    """A server that gives these answers, one a connection, and keeps what it was sent; b"": none."""

    def __init__(self, *answers: bytes) -> None:
        self._answers, self.requests = list(answers), []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                received = b""
                while not self._is_whole(received):
                    received += connection.recv(65536)
                self.requests.append(received)
                connection.sendall(self._answers.pop(0))

    @staticmethod
    def _is_whole(received: bytes) -> bool:
        head, end, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        return bool(end) and len(body) >= (int(length[1]) if length else 0)


def answer(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


TAKES = answer(json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}]}).encode())
ANNOUNCES = answer(b'{"extensions": ["binary_tensor_data"]}')
WRITTEN = binary.write_response(InferResponse("m", "1", {"y": np.array([0.5], np.float32)}), lambda _: True)
GOOD = answer(WRITTEN.body, f"Inference-Header-Content-Length: {WRITTEN.json_bytes}")


def test_a_lost_connection_is_made_again_with_the_same_request(connect: Any) -> None:
    with Scripted(TAKES, ANNOUNCES, b"", GOOD[:40], GOOD) as server, connect(server.url) as client:
        found = client.predict("m", np.array([1], np.float32))
    assert found["y"].tolist() == [0.5]
    first, *others = server.requests[2:]
    assert b"idempotency-key: " in first
    assert others == [first, first]


@pytest.mark.parametrize(
    "body",
    [
        WRITTEN.body[:-1],
        WRITTEN.body + b"x",
        WRITTEN.body.replace(b"FP32", b"FP64"),
        infer.write_response(InferResponse("m", "one", {"y": np.zeros(1)})),
    ],
    ids=["short", "long", "datatype", "version"],
)
def test_an_answer_whose_sizes_do_not_fit(connect: Any, body: bytes) -> None:
    wrong = answer(body, f"Inference-Header-Content-Length: {WRITTEN.json_bytes}")
    with (
        Scripted(TAKES, ANNOUNCES, wrong) as server,
        connect(server.url) as client,
        pytest.raises(ServiceError, match="not our ingress's answer"),
    ):
        client.predict("m", np.array([1], np.float32))


def test_many_at_once_in_order(server: Pretend, noting: Noting, client: Any) -> None:
    images = np.concatenate([IMAGES] * 8)
    server.transport.pause_s = 0.02
    open_most, num_ahead = 0, 0

    def read_as_needed() -> Iterator[Any]:
        nonlocal open_most, num_ahead
        for number, image in enumerate(images):
            open_most = max(open_most, server.transport.num_open)
            num_ahead = max(num_ahead, number - len(server.transport.asked))
            yield image

    found = client.predict_many("digits", read_as_needed(), concurrency=5, outputs=["label"])
    assert [one.label for one in found] == LABELS * 8
    assert all(list(one.outputs) == ["label"] for one in found)
    assert 2 <= open_most <= 5
    assert num_ahead <= 5, "no more was read than there was room for"
    assert len({port for path, _, (_, port) in noting.seen if path.endswith("infer")}) <= 6
    assert len({headers["idempotency-key"] for headers in noting.infers()}) == len(images)
    assert noting.paths().count("/v2") == 1


def test_many_of_few(client: Any) -> None:
    assert client.predict_many("digits", []) == []
    assert [one.label for one in client.predict_many("digits", IMAGES[:2], concurrency=256)] == LABELS[:2]
    for wrong in (0, -1, 257):
        with pytest.raises(InputError, match=f"concurrency is {wrong}; give 1 to 256"):
            client.predict_many("digits", IMAGES, concurrency=wrong)
    with pytest.raises(ModelNotFound, match="no model 'nothing' is deployed"):
        client.predict_many("nothing", IMAGES)


def test_the_first_of_many_that_fails_ends_it(server: Pretend, client: Any) -> None:
    server.transport.pause_s = 0.02
    images = [*IMAGES[:5], np.zeros((3, 3)), *IMAGES, *IMAGES, *IMAGES]
    with pytest.raises(InputError, match=r"shape \[3, 3\], expected") as caught:
        client.predict_many("digits", images, concurrency=3)
    assert caught.value.__notes__ == ["in predict_many, entry 5 of the inputs"]
    assert len(server.transport.asked) < 12
    until(lambda: server.transport.num_open == 0, "something is still under way")
    assert [one.label for one in client.predict_many("digits", IMAGES)] == LABELS


def test_inputs_that_break_off(client: Any) -> None:
    def broken() -> Iterator[Any]:
        yield IMAGES[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        client.predict_many("digits", broken())


def test_what_is_under_way_is_cancelled_with_the_task(server: Pretend, noting: Noting) -> None:
    server.transport.pause_s = 300

    async def main() -> None:
        async with AsyncClient(server.url) as client:
            task = asyncio.create_task(client.predict_many("digits", IMAGES, concurrency=4))
            while server.transport.num_open < 4:
                await asyncio.sleep(0.002)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    until(lambda: server.transport.num_open == 0, "it goes on though nobody waits for it")
