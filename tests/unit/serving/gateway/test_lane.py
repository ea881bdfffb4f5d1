"""The fast lane on real sockets: it answers as the application does, and what is unusual is left to that."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from eagleray.errors import InputError
from eagleray.protocol import binary
from eagleray.protocol.infer import InferRequest
from eagleray.serving.gateway.lane_call import LaneCall
from eagleray.serving.ingress.call import OFF_LOOP_BYTES
from eagleray.serving.transport import Overloaded, ReplicaFailed
from support.garbage import uncollected
from support.links import num_free
from support.serving import Pretend, PretendTransport, bearer, pretend, routes, serving, target, with_model
from support.talking import open_tickets

IRIS = {"inputs": [{"name": "features", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
INFER = "/v2/models/iris/infer"
BODY = json.dumps(IRIS).encode()
CHANGING = (b"date", b"x-request-id", b"x-ratelimit-reset", b"traceparent", b"server-timing")


@contextmanager
def laned(**limits: Any) -> Iterator[Pretend]:
    ingress = pretend(over_links=True, **limits)
    assert ingress.links is not None
    try:
        with serving(ingress):
            yield ingress
    finally:
        ingress.links.close()


@pytest.fixture
def ingress(taken: list[str]) -> Iterator[Pretend]:
    with laned(max_body_bytes=200_000) as found:
        yield found


@pytest.fixture
def without(ingress: Pretend) -> Iterator[Pretend]:
    """The same rules, answered by the application alone."""
    other = pretend(max_body_bytes=200_000)
    other.app.state = ingress.app.state
    with serving(other):
        yield other


def until(condition: Callable[[], object], what: str = "no end", limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def loop_of(ingress: Pretend) -> asyncio.AbstractEventLoop:
    """The gateway's."""
    assert ingress.thread is not None
    return ingress.thread._loop


def connect(ingress: Pretend) -> socket.socket:
    found = urlsplit(ingress.url)
    return socket.create_connection((found.hostname or "", found.port or 0), timeout=60)


def head(path: str = INFER, length: int = len(BODY), *lines: str, method: str = "POST") -> bytes:
    first = [
        f"{method} {path} HTTP/1.1",
        "host: localhost",
        *([f"content-length: {length}"] if length >= 0 else []),
    ]
    return "\r\n".join([*first, *lines]).encode() + b"\r\n\r\n"


def post(body: bytes = BODY, path: str = INFER, *lines: str) -> bytes:
    return head(path, len(body), *lines) + body


Answer = tuple[int, dict[bytes, bytes], bytes]


def read(stream: Any) -> Answer:
    """One answer of a file made of a socket."""
    status = int(stream.readline().split()[1])
    found: dict[bytes, bytes] = {}
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.partition(b": ")
        found[name] = value
    return status, found, stream.read(int(found.get(b"content-length", b"0")))


def exchange(ingress: Pretend, sent: bytes, number: int = 1) -> list[Answer]:
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        connection.sendall(sent)
        return [read(stream) for _ in range(number)]


def plain(answer: Answer) -> Answer:
    status, found, body = answer
    body = re.sub(rb"under request [0-9a-f]+", b"under request", body)
    return status, {name: value for name, value in found.items() if name not in CHANGING}, body


def counted(ingress: Pretend) -> str:
    """What is counted, without times; links tell more parts than Serve's handles."""
    text = re.sub(r"eagleray_ingress_part_seconds_.*\n", "", ingress.metrics.text())
    return re.sub(r"(_sum\{.*\}) .*|(_bucket.*) \d+", r"\1\2", text)


def raw(**inputs: np.ndarray) -> tuple[bytes, str]:
    written = binary.write_request(InferRequest(inputs))
    return written.body, f"{binary.HEADER}: {written.json_bytes}"


IMAGES = raw(image=np.ones((300, 1, 8, 8), np.float32))


def of(name: str, datatype: str, shape: list[int], data: list[Any]) -> bytes:
    tensor = {"name": name, "datatype": datatype, "shape": shape, "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


ALIKE = {
    "JSON": post(),
    "with an id": post(json.dumps({**IRIS, "id": "7", "outputs": [{"name": "class"}]}).encode()),
    "its version": post(path="/v2/models/iris/versions/1/infer"),
    "an alias": post(of("image", "FP32", [1, 1, 8, 8], [1] * 64), "/v2/models/digits@candidate/infer"),
    "raw bytes": post(IMAGES[0], "/v2/models/digits/infer", IMAGES[1]),
    "packed answer": post(IMAGES[0], "/v2/models/digits/infer", IMAGES[1], "accept-encoding: gzip"),
    "texts": post(of("text", "BYTES", [2], ["a", "bc"]), "/v2/models/reviews/infer"),
    "much JSON": post(of("features", "FP32", [9000, 4], [1.5] * 36_000), INFER, "accept-encoding: deflate"),
    "no JSON": post(b"{"),
    "a wrong shape": post(json.dumps({"inputs": [{**IRIS["inputs"][0], "shape": [2, 4]}]}).encode()),
    "a wrong output": post(json.dumps({**IRIS, "outputs": [{"name": "x"}]}).encode()),
    "a wrong length of its JSON": post(BODY, INFER, f"{binary.HEADER}: 999999"),
    "no body": post(b""),
    "too large": head(INFER, 10**10),
    "chunked": head(INFER, -1, "transfer-encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "a bad key": post(BODY, INFER, "authorization: Bearer er_00000000_no"),
    "another site": post(BODY, INFER, "origin: https://evil.example"),
    "bad time": post(BODY, INFER, "x-request-timeout-ms: soon"),
    "the last one": post(BODY, INFER, "connection: close"),
}  # fmt: skip
UNUSUAL = {
    "no such model": post(path="/v2/models/none/infer"),
    "no such version": post(path="/v2/models/iris/versions/9/infer"),
    "a query": post(path=f"{INFER}?a=/infer"),
    "an escaped path": post(path="/v2/models/ir%69s/infer"),
    "packed": post(gzip.compress(BODY), INFER, "content-encoding: gzip"),
    "a packing that is not known": post(BODY, INFER, "content-encoding: br"),
    "another method": head(method="GET", length=0),
    "another path": post(path="/v2/models/iris/x/y/infer"),
    "HTTP/1.0": post().replace(b"HTTP/1.1", b"HTTP/1.0"),
}


@pytest.mark.parametrize("name", [*ALIKE, *UNUSUAL])
def test_each_request_is_answered_as_the_application_does(ingress, without, taken, name) -> None:
    sent = {**ALIKE, **UNUSUAL}[name]
    assert [*map(plain, exchange(ingress, sent))] == [*map(plain, exchange(without, sent))]
    assert bool(taken) == (name in ALIKE)
    if taken:
        with contextlib.suppress(AssertionError):  # an answer is there before it is counted
            until(lambda: counted(ingress) == counted(without), limit_s=5)
        assert counted(ingress) == counted(without)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ReplicaFailed("it broke"), 502, "model 'iris' version 1 failed: it broke"),
        (Overloaded("no room", 3), 503, "no room"),
    ],
)
def test_errors_of_replicas(ingress: Pretend, error: Exception, status: int, said: str) -> None:
    ingress.transport.error = error
    [(found, headers, body)] = exchange(ingress, post())
    assert (found, said in json.loads(body)["error"]) == (status, True)
    assert headers.get(b"retry-after") == (b"3" if status == 503 else None)
    ingress.transport.error = None
    assert exchange(ingress, post())[0][0] == 200


def test_requests_that_come_together_are_answered_in_turn(ingress: Pretend, taken: list[str]) -> None:
    ingress.transport.pause_s = 0.01
    sent = b"".join(
        head(path, 0, method="GET")
        if path == "/v2"
        else post(json.dumps({**IRIS, "id": str(number)}).encode())
        for number, path in enumerate([INFER, INFER, "/v2", INFER, "/v2", "/v2", INFER, INFER])
    )
    answers = exchange(ingress, sent, 8)
    assert [status for status, *_ in answers] == [200] * 8
    assert [json.loads(body).get("id") for *_, body in answers] == ["0", "1", None, "3", None, None, "6", "7"]
    assert len(taken) == 5
    until(lambda: ingress.metrics.in_flight == 0)


def test_a_request_in_pieces(ingress: Pretend) -> None:
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        for _ in range(2):
            for byte in post():
                connection.sendall(bytes([byte]))
            assert read(stream)[0] == 200


def test_the_usual_request_makes_no_task(ingress: Pretend) -> None:
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        connection.sendall(post())
        read(stream)
        loop, tasks = loop_of(ingress), []

        def made(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
            tasks.append(coro)
            return asyncio.Task(coro, loop=loop, **options)

        loop.call_soon_threadsafe(loop.set_task_factory, made)
        for _ in range(20):
            connection.sendall(post())
            assert read(stream)[0] == 200
        assert [coro for coro in tasks if "sleep" not in repr(coro)] == []


def test_requests_leave_nothing_to_the_collector(ingress: Pretend) -> None:
    """A circle stays until a collection, which holds up everybody; its memory is a cold one each time."""
    with connect(ingress) as connection, connection.makefile("rb") as stream, uncollected(LaneCall) as left:
        for _ in range(20):
            connection.sendall(post())
            assert read(stream)[0] == 200
        until(lambda: left() <= 1)  # the connection's last one


def test_a_large_body_that_is_wrong_leaves_nothing_to_the_collector(ingress: Pretend) -> None:
    """Its error was raised in a thread, with the body in its traceback."""
    body = of("features", "FP32", [1, 5], [1.5] * 36_000)
    assert len(body) > OFF_LOOP_BYTES
    with connect(ingress) as connection, connection.makefile("rb") as stream, uncollected(InputError) as left:
        for _ in range(3):
            connection.sendall(post(body))
            assert read(stream)[0] == 400
        until(lambda: left() == 0)


def test_a_body_that_goes_on_for_ever(ingress: Pretend, taken: list[str]) -> None:
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        connection.sendall(head(INFER, -1, "transfer-encoding: chunked"))
        for _ in range(30):
            connection.sendall(b"2710\r\n" + b" " * 10_000 + b"\r\n")
        status, _, body = read(stream)
        assert status == 413
        assert b"came and it went on); send less at a time" in body
    assert taken
    assert exchange(ingress, post())[0][0] == 200


def test_a_body_that_does_not_come() -> None:
    with laned(timeout_s=0.1) as ingress:
        [(status, _, body)] = exchange(ingress, head() + BODY[:5])
        assert (status, json.loads(body)["error"]) == (408, "the body was not there within 0.1 s")


@pytest.mark.parametrize("line", ["x-request-timeout-ms: 50", "x-none: 1"])
def test_an_answer_that_does_not_come(line: str) -> None:
    with laned(timeout_s=0.06) as ingress:
        ingress.transport.pause_s = 30
        [(status, _, body)] = exchange(ingress, post(BODY, INFER, line))
        assert status == 504
        assert b"model 'iris' version 1 did not answer within 0.0" in body
        until(lambda: not ingress.transport.num_open, "the replica works on it still")
        ingress.transport.pause_s = 0
        assert ingress.post(INFER, IRIS).status_code == 200


def test_a_client_that_leaves_is_not_worked_for(ingress: Pretend) -> None:
    ingress.transport.pause_s = 30
    with connect(ingress) as connection:
        connection.sendall(post() * 3)
        until(lambda: ingress.transport.num_open == 1)
    until(lambda: not ingress.transport.num_open)
    until(lambda: ingress.metrics.in_flight == 0)
    assert re.search(r'requests_total\{.*iris.*code="499"\} 1\b', ingress.metrics.text())
    with connect(ingress) as connection:
        connection.sendall(head() + BODY[:5])
        until(lambda: ingress.metrics.in_flight == 1)
    until(lambda: ingress.metrics.in_flight == 0)
    assert open_tickets(ingress) == []


def test_a_key_that_is_revoked_ends_its_requests(ingress: Pretend) -> None:
    ring, key, text = ingress.app.state.keys.create("app", ["infer"])
    ingress.set(keys=ring)
    ingress.transport.pause_s = 30
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        connection.sendall(post(BODY, INFER, "authorization: " + bearer(text)["Authorization"]))
        until(lambda: ingress.transport.num_open == 1)
        loop_of(ingress).call_soon_threadsafe(lambda: ingress.set(keys=ring.revoke(key.id)))
        status, _, body = read(stream)
        assert (status, json.loads(body)["error"]) == (401, "the API key 'app' was revoked")
    until(lambda: not ingress.transport.num_open)


def test_a_version_that_went_while_others_were_before_it(ingress: Pretend) -> None:
    ingress.transport.pause_s = 0.2
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        connection.sendall(post() + post())
        until(lambda: ingress.transport.num_open == 1)
        ingress.set(routes=with_model(routes(), "iris", None))
        assert read(stream)[0] == 200
        status, _, body = read(stream)
        assert (status, b"no model 'iris' is deployed" in body) == (404, True)


def test_a_version_that_is_not_ready_and_one_without_a_link(ingress: Pretend, taken: list[str]) -> None:
    route = routes().models["iris"]
    starting = target("iris", 1, state="starting")
    ingress.set(routes=with_model(routes(), "iris", type(route)(1, {}, {1: starting})))
    assert exchange(ingress, post())[0][0] == 503
    assert not taken


@pytest.mark.parametrize("is_left", [False, True])
def test_serve_has_what_a_replica_had_that_goes(ingress: Pretend, is_left: bool) -> None:
    ingress.transport.pause_s = 30
    assert ingress.links is not None
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        connection.sendall(post())
        until(lambda: ingress.transport.num_open == 1)
        serve = PretendTransport()
        serve.pause_s = 30 if is_left else 0
        for transport in ingress.links._by_loop.values():
            transport._serve = serve  # type: ignore[assignment]
        ingress.links.close()
        if is_left:
            until(lambda: serve.num_open == 1)
        else:
            status, _, body = read(stream)
            assert (status, json.loads(body)["outputs"][0]["data"]) == (200, ["versicolor"])
    until(lambda: len(serve.asked) == 1 and serve.num_open == 0)
    assert serve.seconds == [True], "it is not to be begun a third time"
    until(lambda: ingress.metrics.in_flight == 0)


def test_a_client_that_reads_nothing_is_not_read_either(ingress: Pretend) -> None:
    images, line = IMAGES
    with connect(ingress) as connection:
        connection.settimeout(0.5)
        number = 0
        with contextlib.suppress(TimeoutError):
            for number in range(1, 500):
                connection.sendall(post(images, "/v2/models/digits/infer", line))
                deadline = time.monotonic() + 0.5
                while len(ingress.transport.asked) < number:
                    if time.monotonic() > deadline:
                        raise TimeoutError
                    time.sleep(0.001)
        assert number < 499, "its answers were all taken into memory"
        connection.settimeout(20)
        with connection.makefile("rb") as stream:
            for _ in range(number - 1):
                assert read(stream)[0] == 200


def test_the_answers_of_a_gateway_that_is_about_to_end_close_their_connections(ingress: Pretend) -> None:
    ingress.transport.pause_s = 0.1
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        connection.sendall(post())
        until(lambda: ingress.transport.num_open == 1)
        assert ingress.gateway is not None
        ingress.gateway.state.begin_drain()
        status, headers, _ = read(stream)
        assert (status, headers[b"connection"]) == (200, b"close")
        assert stream.read() == b""


def test_what_such_a_gateway_refuses_at_once_closes_its_connection_behind_the_body(ingress: Pretend) -> None:
    """Closed before that, the answer may be lost."""
    assert ingress.gateway is not None
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        connection.sendall(post())
        assert read(stream)[0] == 200
        ingress.gateway.state.begin_drain()
        connection.sendall(head(INFER, 100_000, "authorization: Bearer er_00000000_no") + b"x" * 1000)
        status, headers, _ = read(stream)
        assert (status, headers[b"connection"]) == (401, b"close")
        for _ in range(99):
            connection.sendall(b"x" * 1000)
        assert stream.read() == b""


def slots(ingress: Pretend) -> list[int]:
    """Free ones of each link."""
    assert ingress.links is not None
    [transport] = ingress.links._by_loop.values()
    return [num_free(link) for line in transport._lines.values() for link in line.pool.links]


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of the bodies that were read into slots."""
    found: list[int] = []
    fill = LaneCall.fill

    def noted(call: LaneCall, body: Any) -> None:
        found.append(body.length)
        fill(call, body)

    monkeypatch.setattr(LaneCall, "fill", noted)
    return found


def large(number: int, size: int = 600) -> tuple[bytes, str]:
    """Images of which each has that sum of values; their body has an odd place for them."""
    images = np.zeros((size, 1, 8, 8), np.float32)
    images[:, 0, 0, 0] = number
    written = binary.write_request(InferRequest({"image": images}, id="x" * number))
    return written.body, f"{binary.HEADER}: {written.json_bytes}"


def test_large_bodies_are_read_to_where_the_replica_reads_them(ingress: Pretend, filled: list[int]) -> None:
    free = slots(ingress)
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        for number in range(5):
            body, line = large(number)
            sent = post(body, "/v2/models/digits/infer", line)
            for part in (sent[:1000], sent[1000:30_000], sent[30_000:]):
                connection.sendall(part)
                time.sleep(0.005)
            status, _, answer = read(stream)
            assert status == 200
            outputs = {output["name"]: output["data"] for output in json.loads(answer)["outputs"]}
            assert outputs["class"] == [number] * 600
            connection.sendall(post())  # the next one is read as ever
            assert read(stream)[0] == 200
    assert len(filled) == 5
    assert slots(ingress) == free
    assert ingress.metrics.in_flight == 0


def test_a_large_body_that_stops_and_a_client_that_leaves_leave_no_slot_behind(filled: list[int]) -> None:
    body, line = large(3)
    path = "/v2/models/digits/infer"
    with laned(timeout_s=0.3) as ingress:
        free = slots(ingress)
        with connect(ingress) as connection:
            connection.sendall(post(body, path, line)[:50_000])
            until(lambda: slots(ingress) != free)
        until(lambda: slots(ingress) == free, "its client has left")
        with connect(ingress) as connection, connection.makefile("rb") as stream:
            connection.sendall(post(body, path, line)[:50_000])
            assert read(stream)[0] == 408
            connection.sendall(post(body, path, line)[50_000:] + post())
            assert read(stream)[0] == 200, "the rest is let go by, and the next one answered"
        until(lambda: slots(ingress) == free)
        ingress.transport.pause_s = 30
        with connect(ingress) as connection:
            connection.sendall(post(body, path, line))
            until(lambda: ingress.transport.num_open == 1)
        until(lambda: slots(ingress) == free and not ingress.transport.num_open)
        assert ingress.metrics.in_flight == 0


def test_large_bodies_that_are_wrong_and_those_of_several_tensors(ingress, without, filled) -> None:
    body, line = large(3)
    free = slots(ingress)
    path = "/v2/models/digits/infer"
    for sent in (
        post(body[:-4], path, line),
        post(body.replace(b"FP32", b"FP16"), path, line),
        post(b"{" + body[1:].replace(b'"image"', b'"imago"'), path, line),
        post(body, "/v2/models/tones/infer", line),
        post(body, path, f"{binary.HEADER}: 7"),
    ):
        parts = [sent[:2000], sent[2000:]]
        with connect(ingress) as connection, connection.makefile("rb") as stream:
            for part in parts:
                connection.sendall(part)
                time.sleep(0.01)
            assert plain(read(stream)) == plain(exchange(without, sent)[0])
    assert len(filled) == 5
    assert slots(ingress) == free


def test_a_replica_that_goes_while_it_reads_a_slot(ingress: Pretend, filled: list[int]) -> None:
    ingress.transport.pause_s = 30
    body, line = large(4)
    assert ingress.links is not None
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        connection.sendall(post(body, "/v2/models/digits/infer", line))
        until(lambda: ingress.transport.num_open == 1)
        serve = PretendTransport()
        for transport in ingress.links._by_loop.values():
            transport._serve = serve  # type: ignore[assignment]
        ingress.links.close()
        status, _, answer = read(stream)
        assert status == 200
        assert {output["name"]: output["data"] for output in json.loads(answer)["outputs"]}["class"] == [
            4
        ] * 600
    assert len(filled) == 1


def test_a_gateway_looks_on_for_the_next_request_once_all_are_answered(monkeypatch) -> None:
    said: list[str] = []

    class Noted:
        def __init__(self, _loop: object, is_expected: Callable[[], object]) -> None:
            self.is_expected = is_expected

        def expect(self) -> None:
            said.append(f"expect {self.is_expected()}")

        def came(self) -> None:
            said.append(f"came {self.is_expected()}")

    monkeypatch.setattr("eagleray.serving.gateway.lane.Awake", Noted)
    with laned() as ingress, connect(ingress) as one, connect(ingress) as two:
        ingress.transport.is_holding = True
        for number, connection in enumerate((one, two)):
            connection.sendall(post())
            until(lambda number=number: ingress.transport.num_open == number + 1)
        ingress.transport.is_holding = False
        for connection in (one, two):
            with connection.makefile("rb") as stream:
                assert read(stream)[0] == 200
    assert said == ["came True", "came False", "expect True"]
