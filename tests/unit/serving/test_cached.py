"""A model whose answers are kept, on both ways: by the application and by the fast lane."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from eagleray.protocol import binary
from eagleray.protocol.infer import InferRequest
from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.routes import ModelRoute
from eagleray.serving.transport import ReplicaFailed
from support.links import num_free
from support.serving import Pretend, bearer, pretend, serving, target, with_model

INFER = "/v2/models/iris/infer"
BODY = json.dumps(
    {"inputs": [{"name": "features", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
).encode()
SHARED = "eagleray; fwd=miss; collapsed"
STORED = "eagleray; fwd=miss; stored"
HIT = "eagleray; hit"
PLAIN = {"accept-encoding": "identity"}


def keeping(ingress: Pretend, name: str = "iris", **changes: Any) -> None:
    """Have the model's answers kept."""
    found = target(name, **{"cache_bytes": 2**22, **changes})
    route = ModelRoute(found.version, {}, {found.version: found})
    ingress.set(routes=with_model(ingress.app.state.routes, name, route))


@contextmanager
def opened(way: str, **limits: Any) -> Iterator[Pretend]:
    ingress = pretend(over_links=way == "lane", **limits)
    keeping(ingress)
    try:
        with serving(ingress):
            if ingress.client is None:
                ingress.client = httpx.Client(base_url=ingress.url, trust_env=False, timeout=8)
            yield ingress
    finally:
        if ingress.links is not None:
            ingress.links.close()


@pytest.fixture(params=["application", "lane"])
def way(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def ingress(way: str) -> Iterator[Pretend]:
    with opened(way) as found:
        yield found


def until(condition: Callable[[], object], what: str = "no end") -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def ask(ingress: Pretend, body: bytes = BODY, *, key: str = "", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ingress.post(INFER, content=body, headers={**PLAIN, **named, **(bearer(key) if key else {})})


def counted(ingress: Pretend) -> dict[str, int]:
    found = re.findall(r'cache_requests_total\{.*result="(\w+)"\} (\d+)', ingress.metrics.text())
    return {result: int(number) for result, number in found if number != "0"}


def kept_bytes(ingress: Pretend) -> int:
    [found] = re.findall(r"^eagleray_ingress_cache_bytes\{.*\} (\d+)", ingress.metrics.text(), re.M)
    return int(found)


@contextmanager
def held(ingress: Pretend) -> Iterator[Callable[[], None]]:
    """The replica answers nothing until the test lets it."""
    gate = threading.Event()
    infer = ingress.transport.infer

    async def waits(target: Any, inputs: Any, *, timeout_s: float, ticket: Any = None) -> Any:
        ingress.transport.num_open += 1
        try:
            async with asyncio.timeout(timeout_s):
                while not gate.is_set():
                    await asyncio.sleep(0.001)
        finally:
            ingress.transport.num_open -= 1
        return await infer(target, inputs, timeout_s=timeout_s, ticket=ticket)

    ingress.transport.infer = waits  # type: ignore[method-assign]
    try:
        yield gate.set
    finally:
        gate.set()
        ingress.transport.infer = infer  # type: ignore[method-assign]


def num_waiting(ingress: Pretend) -> int:
    return sum(
        len(flight.waiting)
        for shelf in ingress.app.cache._shelves.values()
        for flight in shelf._flights.values()
    )


def test_the_second_one_asks_no_replica(ingress: Pretend) -> None:
    first, second = ask(ingress), ask(ingress)
    assert (first.status_code, second.content) == (200, first.content)
    assert [answer.headers["cache-status"] for answer in (first, second)] == [STORED, HIT]
    assert ("age" in first.headers, second.headers["age"]) == (False, "0")
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.headers["traceparent"] != second.headers["traceparent"]
    parts = [re.findall(r"(\w+);dur", answer.headers["server-timing"]) for answer in (first, second)]
    assert parts[0][:3] == ["admission", "cache", "decode"]
    assert parts[1] == ["admission", "cache", "answer"]
    assert len(ingress.transport.asked) == 1
    other = ask(ingress, BODY.replace(b"3, 4]", b"3, 5]"))
    assert other.content != first.content
    assert counted(ingress) == {"miss": 2, "hit": 1}
    assert 2 * len(first.content) < kept_bytes(ingress) < 4000


def test_each_form_of_an_answer_is_kept_for_itself(ingress: Pretend) -> None:
    images = binary.write_request(InferRequest({"features": np.ones((300, 4), np.float32)}, id="7"))
    header = {binary.HEADER.replace("-", "_"): str(images.json_bytes)}
    answers = [
        ask(ingress, images.body, accept_encoding=coding, **header)
        for coding in ("identity", "gzip", "gzip;q=1", "identity", "br")
    ]
    assert [answer.headers["cache-status"] for answer in answers] == [STORED, STORED, HIT, HIT, HIT]
    assert [answer.headers.get("content-encoding") for answer in answers] == [
        None,
        "gzip",
        "gzip",
        None,
        None,
    ]
    assert len({answer.content for answer in answers}) == 1, "unpacked"
    assert answers[0].json()["id"] == "7"
    wanted = json.loads(BODY) | {"parameters": {"binary_data_output": True}}
    one, two = (ask(ingress, json.dumps(wanted).encode()) for _ in range(2))
    assert one.headers[binary.HEADER] == two.headers[binary.HEADER]
    assert (two.headers["content-type"], two.content) == ("application/octet-stream", one.content)
    assert two.headers["cache-status"] == HIT


@pytest.mark.parametrize(
    ("wish", "statuses"),
    [
        ("no-cache", ["eagleray; fwd=request; stored", HIT]),
        ("no-store", ["eagleray; fwd=request", STORED]),
        ("max-age=9", [STORED, HIT]),
    ],
)
def test_what_the_client_wishes(ingress: Pretend, wish: str, statuses: list[str]) -> None:
    answers = [ask(ingress, cache_control=wish), ask(ingress)]
    assert [answer.headers["cache-status"] for answer in answers] == statuses
    assert ask(ingress, cache_control=wish).content == answers[0].content
    assert len(ingress.transport.asked) == (1 if wish == "max-age=9" else 2 + (wish == "no-store"))


def test_errors_are_not_kept(ingress: Pretend) -> None:
    for body in (b"{", BODY.replace(b"[1, 4]", b"[2, 4]"), b""):
        answers = [ask(ingress, body) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [400, 400]
        assert not any("cache-status" in answer.headers for answer in answers)
    ingress.transport.error = ReplicaFailed("it broke")
    assert ask(ingress).status_code == 502
    ingress.transport.error = None
    assert ask(ingress).headers["cache-status"] == STORED
    assert counted(ingress)["miss"] == 8


def test_requests_that_come_together_are_one_to_the_replica(ingress: Pretend) -> None:
    with held(ingress) as let_go, ThreadPoolExecutor(5) as pool:
        first = pool.submit(ask, ingress)
        until(lambda: ingress.transport.num_open == 1)
        others = [pool.submit(ask, ingress) for _ in range(3)]
        until(lambda: num_waiting(ingress) == 3)
        let_go()
        answers = [first.result(20), *(other.result(20) for other in others)]
    assert len({answer.content for answer in answers}) == 1
    assert [answer.headers["cache-status"] for answer in answers] == [STORED, SHARED, SHARED, SHARED]
    assert (len(ingress.transport.asked), counted(ingress)) == (1, {"miss": 1, "shared": 3})


def test_those_who_wait_for_another_share_one_copy_of_their_body(ingress: Pretend) -> None:
    body = BODY[:-1] + b" " * 500_000 + b"}"
    head = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\naccept-encoding: identity\r\n"
    asked = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    place = httpx.URL(ingress.url)
    with held(ingress) as let_go, ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        first = pool.submit(ask, ingress, body)
        until(lambda: ingress.transport.num_open == 1)
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        clients = [
            stack.enter_context(socket.create_connection((place.host, place.port or 0))) for _ in range(12)
        ]
        for client in clients:
            client.sendall(asked)
        until(lambda: num_waiting(ingress) == len(clients))
        assert tracemalloc.get_traced_memory()[0] < 4 * len(body)
        let_go()
        assert first.result(20).status_code == 200
        for client in clients:
            assert client.recv(15) == b"HTTP/1.1 200 OK"


def test_where_the_first_one_fails_the_others_do_not(ingress: Pretend) -> None:
    infer, tries = ingress.transport.infer, []

    async def fails_first(target: Any, inputs: Any, *, timeout_s: float, ticket: Any = None) -> Any:
        tries.append(target)
        if len(tries) == 1:
            while num_waiting(ingress) < 2:
                await asyncio.sleep(0.001)
            raise ReplicaFailed("it broke")
        return await infer(target, inputs, timeout_s=timeout_s, ticket=ticket)

    ingress.transport.infer = fails_first  # type: ignore[method-assign]
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, ingress)
        until(lambda: tries)
        others = [pool.submit(ask, ingress) for _ in range(2)]
        assert first.result(20).status_code == 502
        found = [other.result(20) for other in others]
    assert [answer.status_code for answer in found] == [200, 200]
    assert sorted(answer.headers["cache-status"] for answer in found) == [SHARED, STORED]
    assert len(tries) == 2


def test_a_client_that_leaves_lets_the_next_one_go_on(ingress: Pretend) -> None:
    with held(ingress) as let_go, ThreadPoolExecutor(2) as pool:
        with httpx.Client(base_url=ingress.url, trust_env=False) as leaving:
            first = pool.submit(leaving.post, INFER, content=BODY, headers=PLAIN, timeout=1.5)
            until(lambda: ingress.transport.num_open == 1)
            second = pool.submit(ask, ingress)
            until(lambda: num_waiting(ingress) == 1)
            with pytest.raises(httpx.ReadTimeout):
                first.result(20)
        until(lambda: num_waiting(ingress) == 0)
        let_go()
        assert second.result(20).headers["cache-status"] == STORED
    until(lambda: ingress.metrics.in_flight == 0)
    assert len(ingress.transport.asked) == 1


def test_one_that_waits_has_its_own_deadline(ingress: Pretend) -> None:
    with held(ingress) as let_go, ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, ingress)
        until(lambda: ingress.transport.num_open == 1)
        late = ask(ingress, x_request_timeout_ms="60")
        assert (late.status_code, "did not answer within 0.0" in late.json()["error"]) == (504, True)
        assert num_waiting(ingress) == 0
        let_go()
        assert first.result(20).status_code == 200


def test_time_that_was_waited_for_another_does_not_come_back(way: str) -> None:
    with opened(way, timeout_s=0.4) as ingress, held(ingress), ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, ingress, x_request_timeout_ms="150")
        until(lambda: ingress.transport.num_open == 1)
        second = pool.submit(ask, ingress)
        assert [first.result(20).status_code, second.result(20).status_code] == [504, 504]
        [left_s] = re.findall(r"did not answer within ([\d.e-]+) s", second.result().json()["error"])
        assert float(left_s) < 0.4, "what was left of its own time, when the first one's was over"


def test_a_key_that_is_revoked_ends_one_that_waits(ingress: Pretend) -> None:
    ring, key, text = ingress.app.state.keys.create("app", ["infer"])
    ingress.set(keys=ring)
    with held(ingress) as let_go, ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, ingress)
        until(lambda: ingress.transport.num_open == 1)
        second = pool.submit(ask, ingress, key=text)
        until(lambda: num_waiting(ingress) == 1)
        assert ingress.thread is not None
        ingress.thread._loop.call_soon_threadsafe(lambda: ingress.set(keys=ring.revoke(key.id)))
        assert second.result(20).status_code == 401
        let_go()
        assert first.result(20).status_code == 200


def test_admission_stands_before_it(ingress: Pretend) -> None:
    """A key that may not ask this model, and one that has asked enough, get no kept answer."""
    assert ask(ingress).status_code == 200
    ring, _, other = ingress.app.state.keys.create("other", ["infer"], KeyTerms(models=("digits",)))
    ring, _, slow = ring.create("slow", ["infer"], KeyTerms(requests_per_s=0.01, burst=1))
    ingress.set(keys=ring)
    assert ask(ingress, key=other).status_code == 403
    answers = [ask(ingress, key=slow) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[0].headers["cache-status"] == HIT
    assert any(name.startswith("x-ratelimit") for name in answers[0].headers)
    assert not any(name.startswith("x-ratelimit") for name in ask(ingress).headers)


def test_a_version_that_changes_or_goes_takes_its_answers_along(ingress: Pretend) -> None:
    assert [ask(ingress).headers["cache-status"] for _ in range(2)] == [STORED, HIT]
    keeping(ingress, digest="1" * 64)
    assert kept_bytes(ingress) == 0
    assert ask(ingress).headers["cache-status"] == STORED
    keeping(ingress, cache_bytes=0)
    assert "cache-status" not in ask(ingress).headers
    keeping(ingress, digest="1" * 64)
    assert ask(ingress).headers["cache-status"] == STORED


def test_a_version_without_a_cache_has_none(ingress: Pretend) -> None:
    keeping(ingress, cache_bytes=0)
    for _ in range(2):
        assert "cache-status" not in ask(ingress).headers
    assert len(ingress.transport.asked) == 2
    assert counted(ingress) == {}


def test_an_access_log_line_has_the_parts(ingress: Pretend, tmp_path: Any) -> None:
    from eagleray.serving.gateway.access_log import AccessLog

    log = ingress.app.access_log = AccessLog(tmp_path, 2**20)
    ask(ingress)
    ask(ingress)
    until(lambda: ingress.metrics.in_flight == 0)
    ingress.app.access_log = None
    log.close()
    first, second = (json.loads(line)["ms"] for line in log.path.read_text().splitlines())
    replica = ["link", "queue", "batch", "infer", "encode"] if ingress.links else ["replica", "encode"]
    assert list(first) == ["admission", "cache", "decode", *replica]
    assert list(second) == ["admission", "cache", "answer"]


def large(number: int) -> tuple[bytes, dict[str, str]]:
    images = np.zeros((600, 1, 8, 8), np.float32)
    images[:, 0, 0, 0] = number
    written = binary.write_request(InferRequest({"image": images}))
    return written.body, {binary.HEADER: str(written.json_bytes)}


@pytest.mark.parametrize("long_bytes", [2**20, 1000])
def test_large_bodies_are_hashed_where_they_lie(monkeypatch: pytest.MonkeyPatch, long_bytes: int) -> None:
    """In a slot of the ring; one that waits gives it back, and all are free at the end."""
    monkeypatch.setattr("eagleray.serving.gateway.cache.LONG_BYTES", long_bytes)
    path, (body, header) = "/v2/models/digits/infer", large(3)
    with opened("lane") as ingress:
        keeping(ingress, "digits", version=2)
        assert ingress.links is not None
        [transport] = ingress.links._by_loop.values()
        line = transport.line("m--digits--v2")
        assert line is not None
        [link] = line.pool.links
        free = num_free(link)

        def post() -> httpx.Response:
            return ingress.post(
                path, content=iter_of(body), headers={**header, "content-length": str(len(body))}
            )

        with held(ingress) as let_go, ThreadPoolExecutor(3) as pool:
            first = pool.submit(post)
            until(lambda: ingress.transport.num_open == 1)
            others = [pool.submit(post) for _ in range(2)]
            until(lambda: num_waiting(ingress) == 2)
            assert num_free(link) == free - 1, "of the first one alone"
            let_go()
            answers = [first.result(20), *(other.result(20) for other in others), post()]
        assert [answer.headers["cache-status"] for answer in answers] == [STORED, SHARED, SHARED, HIT]
        assert len({answer.content for answer in answers}) == 1
        assert len(ingress.transport.asked) == 1
        until(lambda: num_free(link) == free)
        ingress.transport.error = ReplicaFailed("it broke")
        body, header = large(4)
        assert post().status_code == 502
        until(lambda: num_free(link) == free)


def iter_of(body: bytes) -> Iterator[bytes]:
    """In parts, so that the rest is read to where the replica reads it."""
    yield body[:1000]
    time.sleep(0.005)
    yield body[1000:]


def test_the_plain_name_and_the_version_share_their_answers(ingress: Pretend) -> None:
    assert ask(ingress).headers["cache-status"] == STORED
    answer = ingress.post("/v2/models/iris/versions/1/infer", content=BODY, headers=PLAIN)
    assert answer.headers["cache-status"] == HIT


def test_routes_carry_it_and_older_ones_have_none() -> None:
    found = replace(target("iris"), cache_bytes=3 << 20)
    assert type(found).from_json(found.to_json()) == found
    older = {name: value for name, value in found.to_json().items() if name != "cache_bytes"}
    assert type(found).from_json(older).cache_bytes == 0
