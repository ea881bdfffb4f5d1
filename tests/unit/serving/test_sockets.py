"""The ingress under a real uvicorn: streams that are left, bodies that do not end."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from support.serving import Pretend, pretend, serving

LIMIT = 100_000


@pytest.fixture(scope="module")
def ingress() -> Iterator[Pretend]:
    """One server for this module."""
    with serving(pretend(max_body_bytes=LIMIT)) as ingress:
        yield ingress


@pytest.fixture
def client(ingress: Pretend) -> Iterator[httpx.Client]:
    ingress.transport.pause_s, ingress.transport.pauses_after = 0.0, 0
    with httpx.Client(base_url=ingress.url, trust_env=False, timeout=60) as client:
        yield client


def until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def connect(ingress: Pretend) -> socket.socket:
    address = urlsplit(ingress.url)
    assert address.hostname
    assert address.port
    return socket.create_connection((address.hostname, address.port), timeout=60)


def num_gone(ingress: Pretend) -> float:
    """Requests that were counted as left by their client."""
    lines = re.findall(
        r'^eagleray_ingress_requests_total{.*code="499"} (.*)$', ingress.app.metrics.text(), re.M
    )
    return sum(map(float, lines))


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("after", "is_streamed"), [(0, True), (1, True), (3, True), (0, False)], ids=["0", "1", "3", "whole"]
)
def test_a_text_that_nobody_waits_for_ends_at_once(
    ingress: Pretend, client: httpx.Client, after: int, is_streamed: bool
) -> None:
    """The transport's generator is closed when the client goes, though its next piece is minutes away."""
    ingress.transport.pauses_after = after
    ingress.transport.pause_s = 300
    body = {"model": "gpt", "prompt": "ab", "max_tokens": 9999, "stream": is_streamed}
    with connect(ingress) as connection:
        connection.sendall(post("/v1/completions", json.dumps(body).encode()))
        until(lambda: ingress.transport.num_open == 1, "it never began")
        received = b""
        while received.count(b"data: ") < after:
            received += connection.recv(65536)
    until(lambda: ingress.transport.num_open == 0, "it goes on though nobody reads it")
    until(lambda: ingress.app.metrics.in_flight == 0, "the request is still counted as under way")


@pytest.mark.parametrize("after_s", [0.0, 0.3], ids=["at once", "later"])
@pytest.mark.parametrize("path", ["/v2/models/iris/infer", "/models/iris:predict"])
def test_a_prediction_that_nobody_waits_for_ends(
    ingress: Pretend, client: httpx.Client, path: str, after_s: float
) -> None:
    """Whether the client goes before anybody listens for that, or after; and it is counted as gone."""
    ingress.transport.pause_s = 300
    before = num_gone(ingress)
    tensor = {"name": "features", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    inputs = [tensor] if path.startswith("/v2") else [1, 2, 3, 4]
    with connect(ingress) as connection:
        connection.sendall(post(path, json.dumps({"inputs": inputs}).encode()))
        until(lambda: ingress.transport.num_open == 1, "it never began")
        time.sleep(after_s)
    until(lambda: ingress.transport.num_open == 0, "it goes on though nobody waits for it")
    until(lambda: ingress.app.metrics.in_flight == 0, "the request is still counted as under way")
    ingress.transport.pause_s = 0
    assert client.get("/v2/health/live").status_code == 200
    assert num_gone(ingress) == before + 1


def test_a_prediction_that_is_waited_for_is_answered_late(ingress: Pretend, client: httpx.Client) -> None:
    ingress.transport.pause_s = 0.3
    for _ in range(2):
        assert client.post("/models/iris:predict", json={"inputs": [1, 2, 3, 4]}).status_code == 200


def test_many_at_once_do_not_wait_for_each_other(ingress: Pretend) -> None:
    ingress.transport.pause_s = 1.0
    body = json.dumps({"inputs": [1, 2, 3, 4]}).encode()
    started_s = time.monotonic()
    connections = [connect(ingress) for _ in range(20)]
    for connection in connections:
        connection.sendall(post("/models/iris:predict", body))
    answers = [connection.recv(65536) for connection in connections]
    for connection in connections:
        connection.close()
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    assert time.monotonic() - started_s < 15, "one after the other they take 20 s"


@pytest.mark.parametrize("is_announced", [True, False], ids=["with Content-Length", "without"])
def test_a_body_ten_times_too_large_is_refused_and_the_connection_lives(
    ingress: Pretend, client: httpx.Client, is_announced: bool
) -> None:
    size = 10 * LIMIT
    content = b" " * size if is_announced else (b" " * 1000 for _ in range(size // 1000))
    answer = client.post("/v2/models/iris/infer", content=content)
    assert (answer.status_code, "larger than 100000 bytes" in answer.text) == (413, True)
    assert client.get("/v2/health/live").status_code == 200


def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(ingress: Pretend) -> None:
    with connect(ingress) as connection:
        connection.sendall(
            b"POST /v2/models/iris/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 999999\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_body_that_never_comes() -> None:
    with serving(pretend(timeout_s=0.1)) as ingress, connect(ingress) as connection:
        connection.sendall(
            b"POST /v2/models/iris/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nabc"
        )
        answer = b""
        while b"}" not in answer:
            answer += connection.recv(65536) or pytest.fail(f"it ended after {answer!r}")
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"the body was not there within 0.1 s" in answer


def test_a_client_that_leaves_in_the_middle_of_its_body(ingress: Pretend, client: httpx.Client) -> None:
    before = num_gone(ingress)
    with connect(ingress) as connection:
        connection.sendall(
            b"POST /v2/models/digits/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nabc"
        )
        until(lambda: ingress.app.metrics.in_flight == 1, "it never came")
    until(lambda: ingress.app.metrics.in_flight == 0, "it is still waited for")
    assert num_gone(ingress) == before + 1
    assert client.get("/v2/health/live").status_code == 200
