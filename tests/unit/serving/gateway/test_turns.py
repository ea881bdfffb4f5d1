"""Requests that wait for their turn, on real sockets: by the fast lane and by the application alike."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.admission.gate import Gate
from support.serving import Pretend, bearer, pretend, routes, serving, target, with_model
from support.talking import open_tickets

IRIS = {"inputs": [{"name": "features", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
LANE, ROUTE = "/v2/models/iris/infer", "/v2/models/ir%69s/infer"
"""The same route; what is escaped in a path is none of the lane's."""
BODY = json.dumps(IRIS).encode()
BOTH = pytest.mark.parametrize("path", [LANE, ROUTE], ids=["lane", "route"])


class Asker:
    """Asks a gateway from threads; its version takes `window` requests at a time and lets two wait."""

    def __init__(self, ingress: Pretend, pool: ThreadPoolExecutor) -> None:
        self.ingress, self._pool = ingress, pool

    @property
    def gate(self) -> Gate:
        """Of the iris."""
        return self.gate_of("iris")

    def gate_of(self, name: str) -> Gate:
        assert self.ingress.links is not None
        [transport] = self.ingress.links._by_loop.values()
        gate = transport.gate(self.ingress.app.state.routes.resolve(name))
        assert gate is not None
        return gate

    def ask(self, path: str, values: Any = IRIS, **headers: str) -> Future[httpx.Response]:
        """An answer to come; the request is there, or waits, when this returns."""
        gate = self.gate_of("gpt" if "gpt" in path else "iris")
        before = gate.num_entered + gate.num_refused
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        found = self._pool.submit(self.ingress.post, path, values, headers=named)
        until(lambda: gate.num_entered + gate.num_refused > before or found.done())
        return found

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Meanwhile no request is answered: whatever comes in time finds those before it under way."""
        self.ingress.transport.is_holding = True
        try:
            yield
        finally:
            self.ingress.transport.is_holding = False

    def connect(self) -> socket.socket:
        found = urlsplit(self.ingress.url)
        return socket.create_connection((found.hostname or "", found.port or 0), timeout=60)


def until(condition: Callable[[], object], what: str = "no end") -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def queued_ms(answer: Future[httpx.Response]) -> float:
    """How long it waited, as it is told; 0 where it did not."""
    said = answer.result().headers["server-timing"]
    return float(said.partition("queue;dur=")[2].partition(",")[0] or 0)


@contextmanager
def asking(window: int = 1, **limits: Any) -> Iterator[Asker]:
    ingress = pretend(over_links=True, **limits)
    assert ingress.links is not None
    ingress.links.max_ongoing = window
    route, text = routes().models["iris"], routes().models["gpt"]
    iris, gpt = target("iris", max_queued=2), target("gpt", max_queued=2)
    found = with_model(routes(), "iris", type(route)(1, {}, {1: iris}))
    ingress.set(routes=with_model(found, "gpt", type(text)(1, {}, {1: gpt})))
    try:
        with serving(ingress), ThreadPoolExecutor(8) as pool:
            yield Asker(ingress, pool)
    finally:
        ingress.links.close()


@pytest.fixture
def asker() -> Iterator[Asker]:
    with asking() as found:
        found.ingress.transport.pause_s = 0.05
        yield found
        until(lambda: (found.gate.num_queued, found.gate.cost_under_way) == (0, 0))


def head(path: str, *lines: str, length: int = len(BODY)) -> bytes:
    first = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {length}"]
    return "\r\n".join([*first, *lines]).encode() + b"\r\n\r\n"


@BOTH
def test_the_time_that_a_body_takes_to_come_is_not_the_answers(asker: Asker, path: str) -> None:
    """Where the client has not said how long it waits for all of it."""
    with asker.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(head(path))
        until(lambda: open_tickets(asker.ingress))
        [ticket] = open_tickets(asker.ingress)
        ticket.deadline_s = time.monotonic() - 1.0  # as if most of a minute had passed
        before = asker.ask(path)
        connection.sendall(BODY)
        assert stream.readline().split()[1] == b"200"
        assert before.result().status_code == 200


@BOTH
def test_one_more_than_may_wait_is_told_so(asker: Asker, path: str) -> None:
    with asker.holding():
        asked = [asker.ask(path) for _ in range(3)]
        answer = asker.ask(path).result()
    assert (answer.status_code, answer.json()) == (
        503, {"error": "model 'iris' version 1 has 2 requests waiting, which is all it takes; try again"}
    )  # fmt: skip
    assert int(answer.headers["retry-after"]) >= 1
    assert int(answer.headers["retry-after-ms"]) > 0
    assert [one.result().status_code for one in asked] == [200] * 3
    waited = [*map(queued_ms, asked)]
    assert waited == sorted(waited)
    assert waited[2] >= 50.0


@BOTH
def test_an_answer_that_is_kept_is_given_however_busy_the_replicas_are(asker: Asker, path: str) -> None:
    kept = target("iris", max_queued=2, cache_bytes=2**20)
    asker.ingress.set(routes=with_model(routes(), "iris", type(routes().models["iris"])(1, {}, {1: kept})))
    values = [{"inputs": [{**IRIS["inputs"][0], "data": [number] * 4}]} for number in range(2)]
    assert asker.ingress.post(path, values[0]).status_code == 200
    asker.gate.forecast.observe(30.0, 1)
    asker.gate.cost_under_way += 1  # another's, for as long as this takes
    soon = {"x-request-timeout-ms": "20000"}
    again = asker.ingress.post(path, values[0], headers=soon)
    assert (again.status_code, again.headers.get("cache-status")) == (200, "eagleray; hit")
    new = asker.ingress.post(path, values[1], headers=soon)
    assert (new.status_code, "an answer would take" in new.json()["error"]) == (503, True)
    asker.gate.cost_under_way -= 1


@BOTH
def test_a_client_that_leaves_waits_no_longer(asker: Asker, path: str) -> None:
    with asker.holding():
        first = asker.ask(path)
        with asker.connect() as connection:
            connection.sendall(head(path) + BODY)
            until(lambda: asker.gate.num_queued == 1)
            second = asker.ask(path)
        until(lambda: asker.gate.num_queued == 1)
        assert not first.done()
    assert [first.result().status_code, second.result().status_code] == [200, 200]
    assert len(asker.ingress.transport.asked) == 2, "nobody waited for the third"


@BOTH
def test_whose_time_is_over_while_he_waits_is_told_so(asker: Asker, path: str) -> None:
    with asker.holding():
        first = asker.ask(path)
        answer = asker.ask(path, x_request_timeout_ms="60").result()
        assert answer.status_code == 504
        assert answer.json()["error"].startswith("model 'iris' version 1: the request waited 0.")
        assert answer.json()["error"].endswith("and has no time left")
        assert not first.done()
        assert asker.gate.num_queued == 0
    assert first.result().status_code == 200


@BOTH
def test_without_a_time_of_its_own_a_request_waits_as_long_as_any(path: str) -> None:
    with asking(timeout_s=0.1) as asker:
        asker.ingress.transport.pause_s = 30
        first, second = asker.ask(path), asker.ask(path)
        said = {one.result().json()["error"][:52] for one in (first, second)}
        assert {one.result().status_code for one in (first, second)} == {504}
        assert "model 'iris' version 1 did not answer within 0.1 s"[:52] in said
        until(lambda: not asker.ingress.transport.num_open and not asker.gate.cost_under_way)


@BOTH
def test_what_would_come_too_late_is_refused_before_its_body_is_read(asker: Asker, path: str) -> None:
    asker.gate.forecast.observe(2.0, 1)
    with asker.connect() as connection, connection.makefile("rb") as stream:
        with asker.holding():
            first = asker.ask(path)
            connection.sendall(head(path, "x-request-timeout-ms: 500"))
            lines = iter(stream.readline, b"\r\n")
            parts = [line.decode().lower().strip().partition(": ") for line in lines]
        found = {name: value for name, _, value in parts}
        assert "http/1.1 503 service unavailable" in found
        assert found["retry-after"] == "5"
        body = json.loads(stream.read(int(found["content-length"])))["error"]
        assert "an answer would take 5 s, and the request waits 0.5 s" in body
        connection.sendall(BODY + head(path) + BODY)
        assert b"200 OK" in stream.readline(), "the next request of the connection"
    assert first.result().status_code == 200


@BOTH
def test_the_first_priority_goes_before_the_second_and_that_before_the_third(path: str) -> None:
    with asking() as asker:
        app, transport = asker.ingress.app, asker.ingress.transport
        keys = {}
        for priority in ("shadow", "batch", "interactive"):
            ring, _, text = app.state.keys.create(priority, ["infer"], KeyTerms(priority=priority))
            asker.ingress.set(keys=ring)
            keys[priority] = bearer(text)["Authorization"]
        asker.gate.max_queued = 10
        asked = []
        with asker.holding():
            first = asker.ask(path)
            for number, key in enumerate(keys.values()):
                values = {"inputs": [{**IRIS["inputs"][0], "data": [number] * 4}]}
                asked.append(asker.ask(path, values, authorization=key))
            assert asker.gate.num_queued == 3
        assert [one.result().status_code for one in (first, *asked)] == [200] * 4
        order = [int(inputs["features"][0, 0]) for _, inputs in transport.asked[1:]]
        assert order == [2, 1, 0]
        waited = [*map(queued_ms, asked)]
        assert waited == sorted(waited, reverse=True)


@BOTH
def test_a_key_that_is_revoked_waits_no_longer(asker: Asker, path: str) -> None:
    ring, key, text = asker.ingress.app.state.keys.create("app", ["infer"])
    asker.ingress.set(keys=ring)
    with asker.holding():
        first = asker.ask(path)
        second = asker.ask(path, authorization=bearer(text)["Authorization"])
        assert asker.gate.num_queued == 1
        assert asker.ingress.thread is not None
        loop = asker.ingress.thread._loop
        loop.call_soon_threadsafe(lambda: asker.ingress.set(keys=ring.revoke(key.id)))
        answer = second.result()
        assert (answer.status_code, answer.json()["error"]) == (401, "the API key 'app' was revoked")
        assert not first.done()
        assert asker.gate.num_queued == 0
    first.result()


def test_a_request_of_many_samples_takes_as_much_of_the_room() -> None:
    with asking(window=8) as asker:
        values = {"inputs": [{**IRIS["inputs"][0], "shape": [8, 4], "data": [1.0] * 32}]}
        with asker.holding():
            asked = [asker.ask(path, values) for path in (LANE, ROUTE)]
            assert (asker.gate.cost_under_way, asker.gate.num_queued) == (8, 1)
        assert [one.result().status_code for one in asked] == [200, 200]


@pytest.mark.parametrize("is_streamed", [True, False], ids=["lane", "route"])
def test_a_body_that_is_slow_to_come_says_nothing_of_how_long_texts_take(is_streamed: bool) -> None:
    body = json.dumps({"model": "gpt", "prompt": "ab", "max_tokens": 2, "stream": is_streamed}).encode()
    with asking() as asker, asker.connect() as connection:
        gate = asker.gate_of("gpt")
        connection.sendall(head("/v1/completions", length=len(body)) + body[:1])
        time.sleep(0.3)
        connection.sendall(body[1:])
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        until(lambda: gate.num_entered == 1 and not gate.cost_under_way)
        assert 0.0 < gate.forecast.plain_s(1) < 0.2


def test_texts_wait_for_their_turn_too() -> None:
    with asking() as asker:
        transport, gate = asker.ingress.transport, asker.gate_of("gpt")
        transport.pause_s = 0.03
        values = {"model": "gpt", "prompt": "ab", "max_tokens": 4}
        began_s = time.monotonic()
        with asker.holding():
            asked = [asker.ask("/v1/completions#gpt", {**values, "stream": n == 1}) for n in range(3)]
            assert (gate.cost_under_way, gate.num_queued) == (1, 2)
            refused = asker.ask("/v1/completions#gpt", values).result()
        assert refused.status_code == 503
        assert (
            refused.json()["error"]["message"]
            == "model 'gpt' version 1 has 2 requests waiting, which is all it takes; try again"
        )
        assert [one.result().status_code for one in asked] == [200] * 3
        assert len(transport.requests) == 3
        until(lambda: (gate.cost_under_way, gate.num_queued) == (0, 0))
        assert gate.forecast.plain_s(0) == 0.0
        took_s = time.monotonic() - began_s
        assert 0.024 <= gate.forecast.plain_s(1) <= took_s, "a text more than there is room for"
