"""What a key may use, at the ingress: limits, deadlines, and the open requests of a revoked key."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.ingress.app import END_S
from eagleray.serving.keys import KeyRing
from support.serving import Pretend, bearer, pretend, serving

INFER = "/v2/models/iris/infer"
IRIS = {"inputs": [{"name": "features", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
BROKEN = {False: 500, True: 502}
"""What an error is that nobody foresaw: the ingress's own, or, where there are links, the replica's."""
RATE_HEADERS = ("x-ratelimit-resource", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")


def key_of(ingress: Pretend, **terms: Any) -> dict[str, str]:
    """The header with a new key."""
    ring, _, text = ingress.app.state.keys.create("app", ["infer"], KeyTerms(**terms))
    ingress.set(keys=ring)
    ingress.admin.ring = ring
    return bearer(text)


def together(ingress: Pretend, *requests: tuple[str, Any, dict[str, str]]) -> list[httpx.Response]:
    """Answers of requests that are sent at once."""

    async def exchange() -> list[httpx.Response]:
        door = None if ingress.client else httpx.ASGITransport(ingress.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=door, base_url=ingress.url, trust_env=False) as client:
            sent = [client.post(path, json=values, headers=headers) for path, values, headers in requests]
            return await asyncio.gather(*sent)

    return asyncio.run(exchange())


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("is_key_needed", [True, False])
def test_a_rate_with_its_headers(ingress: Pretend, is_key_needed: bool) -> None:
    ingress.set(is_key_needed_for_infer=is_key_needed)
    limited, other = key_of(ingress, requests_per_s=0.5, burst=2), key_of(ingress)
    first, second, third = (ingress.post(INFER, IRIS, headers=limited) for _ in range(3))
    assert [answer.status_code for answer in (first, second, third)] == [200, 200, 429]
    assert [first.headers[name] for name in RATE_HEADERS[:3]] == ["requests", "0.5", "1"]
    assert [third.headers[name] for name in RATE_HEADERS[:3]] == ["requests", "0.5", "0"]
    assert 0 < float(third.headers["x-ratelimit-reset"]) <= 4
    assert third.headers["retry-after"] == "2"
    assert 1000 <= int(third.headers["retry-after-ms"]) <= 2000
    assert "the API key 'app' may use 0.5 requests a second and has; try again in" in third.json()["error"]
    assert len(ingress.transport.asked) == 2, "no replica was troubled"
    unlimited = ingress.post(INFER, IRIS, headers=other)
    assert (unlimited.status_code, any(name in unlimited.headers for name in RATE_HEADERS)) == (200, False)
    for path in ("/models", "/v2/models/iris", "/metrics"):  # what is told of models is not counted
        assert ingress.get(path, headers=limited).status_code == 200
    refused = ingress.post("/v1/completions", {"model": "gpt", "prompt": "a"}, headers=limited)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")


def test_a_bad_request_counts_too_and_one_without_a_key_does_not(ingress: Pretend) -> None:
    limited = key_of(ingress, requests_per_s=0.01)
    assert ingress.post(INFER, {"inputs": 7}, headers=limited).status_code == 400
    assert ingress.post(INFER, IRIS, headers=limited).status_code == 429
    assert {ingress.post(INFER, IRIS).status_code for _ in range(5)} == {200}


def test_requests_at_a_time(ingress: Pretend) -> None:
    limited, other = key_of(ingress, concurrency=3), key_of(ingress)
    ingress.transport.pause_s = 0.3
    answers = together(ingress, *[(INFER, IRIS, limited)] * 8, *[(INFER, IRIS, other)] * 8)
    assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 5 + [200] * 8
    assert answers[3].headers["x-ratelimit-resource"] == "concurrency"
    ingress.transport.error = ValueError("broken")  # what fails is over too
    assert [ingress.post(INFER, IRIS, headers=limited).status_code for _ in range(5)] == [
        BROKEN[ingress.links is not None]
    ] * 5
    ingress.transport.error = None
    assert {a.status_code for a in together(ingress, *[(INFER, IRIS, limited)] * 3)} == {200}


def test_tokens_are_reserved_and_what_was_not_used_is_given_back(ingress: Pretend) -> None:
    limited = key_of(ingress, tokens_per_s=4)
    body = {"model": "gpt", "prompt": "ab", "max_tokens": 8}

    def ask(**changes: Any) -> httpx.Response:
        return ingress.post("/v1/completions", {**body, **changes}, headers=limited)

    assert ask().status_code == 200  # ten, where one is in a quarter second: the rest is owed
    refused = ask()
    assert (refused.status_code, refused.headers["x-ratelimit-resource"]) == (429, "tokens")
    assert refused.headers["x-ratelimit-limit"] == "4"
    [account] = [found for found in ingress.app.admission._accounts.values() if found.name == "app"]
    assert account._tokens is not None
    account._tokens.give(100)
    ingress.transport.error = ValueError("broken")
    broken = BROKEN[ingress.links is not None]
    assert ask(max_tokens=1000).status_code == broken, "more than there ever is, when nothing is owed"
    ingress.transport.error = None
    assert ask(stream=True).status_code == 200, "nothing was used, so all was given back"
    assert ask().status_code == 429
    assert ingress.post("/models/gpt:predict", {"inputs": "ab"}, headers=limited).status_code == 429


def test_bytes_in_and_out(ingress: Pretend) -> None:
    limited = key_of(ingress, bytes_per_s=100)
    first = ingress.post(INFER, IRIS, headers=limited)
    assert first.status_code == 200
    refused = ingress.post(INFER, IRIS, headers=limited)
    assert (refused.status_code, refused.headers["x-ratelimit-resource"]) == (429, "bytes")
    used = int(first.request.headers["content-length"]) + len(first.content)
    assert used / 100 - 2 < float(refused.headers["x-ratelimit-reset"]) <= used / 100

    async def unannounced() -> Any:
        yield json.dumps(IRIS).encode()

    chunked = key_of(ingress, bytes_per_s=100)

    async def exchange() -> list[int]:
        door = httpx.ASGITransport(ingress.app)
        async with httpx.AsyncClient(transport=door, base_url=ingress.url, headers=chunked) as client:
            return [(await client.post(INFER, content=unannounced())).status_code for _ in range(2)]

    assert asyncio.run(exchange()) == [200, 429], "bytes are counted as they come"


@pytest.mark.parametrize("size", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_keys_at_once(ingress: Pretend, size: int) -> None:
    ring, headers = ingress.app.state.keys, []
    for number in range(size):
        ring, _, text = ring.create(f"k{number}", ["infer"], KeyTerms(requests_per_s=0.01, concurrency=1))
        headers.append(bearer(text))
    ingress.set(keys=ring, is_key_needed_for_infer=True)
    for status in (200, 429):
        answers = together(ingress, *[(INFER, IRIS, header) for header in headers])
        assert Counter(answer.status_code for answer in answers) == {status: size}
    assert ingress.app.metrics.in_flight == 0


def test_the_clients_time(ingress: Pretend) -> None:
    ingress.transport.pause_s = 0.2
    hurried = {"x-request-timeout-ms": "50"}
    answer = ingress.post(INFER, IRIS, headers=hurried)
    assert (answer.status_code, "did not answer within 0.0" in answer.json()["error"]) == (504, True)
    assert ingress.post(INFER, IRIS, headers={"x-request-timeout-ms": "60000"}).status_code == 200
    for value in ("0", "-5", "1.5", "soon", ""):
        answer = ingress.post(INFER, IRIS, headers={"x-request-timeout-ms": value})
        assert (answer.status_code, "x-request-timeout-ms: expected whole milliseconds" in answer.text) == (
            400,
            True,
        )
    ingress.transport.pause_s, ingress.transport.pauses_after = 0.01, 1
    body = {"model": "gpt", "prompt": "ab", "max_tokens": 20}
    for headers, status in ((hurried, 504), ({}, 200)):  # each piece is quick enough, the whole is not
        assert ingress.post("/v1/completions", body, headers=headers).status_code == status
    streamed = ingress.post("/v1/completions", {**body, "stream": True}, headers=hurried)
    assert (streamed.status_code, "[DONE]" in streamed.text) == (200, True), "the time is for the first piece"
    assert ingress.transport.num_open == 0


def test_the_gateways_time_is_for_a_whole_text_and_for_each_piece_of_a_stream(ingress: Pretend) -> None:
    ingress.set(limits=replace(ingress.app.state.limits, timeout_s=0.1))
    ingress.transport.pause_s, ingress.transport.pauses_after = 0.01, 1
    body = {"model": "gpt", "prompt": "ab", "max_tokens": 20}
    answer = ingress.post("/v1/completions", body)
    assert (answer.status_code, "did not answer within 0.1 s" in answer.text) == (504, True)
    streamed = ingress.post("/v1/completions", {**body, "stream": True})
    assert (streamed.status_code, "[DONE]" in streamed.text) == (200, True)
    until(lambda: ingress.transport.num_open == 0)


@pytest.fixture(scope="module")
def server() -> Iterator[Pretend]:
    with serving(pretend()) as ingress:
        ingress.set(is_key_needed_for_infer=True)
        yield ingress


def revoke(server: Pretend, client: httpx.Client) -> None:
    """Take the newest key back, as the command does."""
    key_id = list(server.app.state.keys.keys)[-1]
    assert client.delete(f"/admin/keys/{key_id}", headers=bearer(server.admin_key)).status_code == 200


def made(server: Pretend, client: httpx.Client) -> dict[str, str]:
    answer = client.post("/admin/keys", json={"name": "app"}, headers=bearer(server.admin_key))
    return bearer(answer.json()["key"])


@pytest.fixture
def client(server: Pretend) -> Iterator[httpx.Client]:
    server.transport.pause_s, server.transport.pauses_after = 0.0, 0
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        yield client


def test_a_stream_of_a_revoked_key_ends_and_says_why(server: Pretend, client: httpx.Client) -> None:
    headers = made(server, client)
    server.transport.pause_s, server.transport.pauses_after = 60.0, 2
    body = {"model": "gpt", "prompt": "ab", "max_tokens": 9, "stream": True}
    with client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
        lines = answer.iter_lines()
        for _ in range(4):
            next(lines)
        started_s = time.monotonic()
        with httpx.Client(base_url=server.url, trust_env=False) as other:
            revoke(server, other)
        left = [line for line in lines if line]
    assert time.monotonic() - started_s < 2.0
    assert json.loads(left[-1].removeprefix("data: "))["error"]["message"] == "the API key 'app' was revoked"
    assert server.transport.num_open == 0, "the replica's stream is closed"
    assert client.post("/v1/completions", json=body, headers=headers).status_code == 401


def test_a_prediction_of_a_revoked_key_ends(server: Pretend, client: httpx.Client) -> None:
    headers = made(server, client)
    server.transport.pause_s = 60.0

    async def exchange() -> httpx.Response:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False) as both:
            waiting = asyncio.ensure_future(both.post(INFER, json=IRIS, headers=headers))
            while not server.transport.num_open:
                await asyncio.sleep(0.002)
            key_id = list(server.app.state.keys.keys)[-1]
            await both.delete(f"/admin/keys/{key_id}", headers=bearer(server.admin_key))
            async with asyncio.timeout(2.0):
                return await waiting

    answer = asyncio.run(exchange())
    assert (answer.status_code, answer.json()["error"]) == (401, "the API key 'app' was revoked")
    assert answer.headers["www-authenticate"] == 'Bearer realm="eagleray"'
    assert server.transport.num_open == 0


def test_a_client_that_reads_nothing_does_not_keep_the_stream_of_a_revoked_key() -> None:
    """Without a socket: its `send` never returns, as a connection's whose client takes nothing."""
    ingress = pretend()
    ring, key, text = ingress.app.state.keys.create("app", ["infer"])
    ingress.set(keys=ring)

    async def scenario() -> float:
        stuck = asyncio.Event()

        async def receive() -> Any:
            if not stuck.is_set():
                stuck.set()
                return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
            return await asyncio.Future()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Future()

        body = {"model": "gpt", "prompt": "ab", "stream": True}
        headers = [(b"authorization", f"Bearer {text}".encode()), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "query_string": b"",
            "headers": headers,
        }
        task = asyncio.ensure_future(ingress.app(scope, receive, send))
        while not ingress.transport.num_open:
            await asyncio.sleep(0.001)
        started_s = time.monotonic()
        ingress.set(keys=ring.revoke(key.id))
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - started_s

    assert END_S * 0.9 < asyncio.run(scenario()) < 2.0 * END_S
    assert (ingress.transport.num_open, ingress.app.metrics.in_flight) == (0, 0)


def test_a_stream_of_a_key_that_expires_ends(ingress: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eagleray.serving.ingress.app.SWEEP_S", 0.01)
    ingress.transport.pause_s, ingress.transport.pauses_after = 60.0, 1
    headers = key_of(ingress, expires_at=time.time() + 0.15)
    body = {"model": "gpt", "prompt": "ab", "max_tokens": 9, "stream": True}
    answer = ingress.post("/v1/completions", body, headers=headers)
    assert answer.status_code == 200
    assert "the API key 'app' expired on 2" in answer.text
    until(lambda: ingress.transport.num_open == 0)
    assert ingress.app._sweep is None


def test_other_keys_do_not_notice(ingress: Pretend) -> None:
    headers = key_of(ingress)
    ring, gone, _ = ingress.app.state.keys.create("gone", ["infer"])
    ingress.set(keys=ring)
    ingress.transport.pause_s = 0.1

    async def exchange() -> httpx.Response:
        door = httpx.ASGITransport(ingress.app)
        async with httpx.AsyncClient(transport=door, base_url=ingress.url) as client:
            waiting = asyncio.ensure_future(client.post(INFER, json=IRIS, headers=headers))
            while not ingress.transport.num_open:
                await asyncio.sleep(0.001)
            ingress.set(keys=ring.revoke(gone.id))
            ingress.set(keys=KeyRing.from_json(ingress.app.state.keys.to_json()))
            return await waiting

    assert asyncio.run(exchange()).status_code == 200
