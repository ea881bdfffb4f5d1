"""Streamed texts of the fast lane are answered in the words of the application, byte for byte."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator

import pytest

from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.transport import Overloaded, ReplicaFailed
from support.serving import Pretend, pretend, serving
from support.streams import (
    CHAT,
    COMPLETIONS,
    STREAM,
    chat,
    completion,
    connect,
    exchange,
    generation,
    plain,
    post,
    read_head,
    until,
)
from support.talking import open_tickets


@pytest.fixture
def without(streaming: Pretend) -> Iterator[Pretend]:
    """The same rules, answered by the application alone."""
    other = pretend()
    other.app.state = streaming.app.state
    with serving(other):
        yield other


USAGE = {"include_usage": True}
EACH = {"continuous_usage_stats": True}
ALIKE = {
    "a completion": post(completion()),
    "counts at the end": post(completion(stream_options=USAGE)),
    "counts each time": post(completion(stream_options=EACH)),
    "counts always": post(completion(stream_options=USAGE | EACH, stop=["€"])),
    "one piece": post(completion(max_tokens=1)),
    "a turn": post(chat(), CHAT),
    "a turn with counts": post(chat(stream_options=USAGE | EACH, max_tokens=1), CHAT),
    "generate": post(generation(), STREAM),
    "its version": post(generation(), "/v2/models/gpt/versions/1/generate_stream"),
    "the last one": post(completion(), COMPLETIONS, "connection: close"),
    "an id of its own": post(completion(), COMPLETIONS, "x-request-id: mine"),
    "a body in chunks": post(b"", COMPLETIONS).replace(b"content-length: 0", b"transfer-encoding: chunked")
    + b"%x\r\n%b\r\n0\r\n\r\n" % (len(json.dumps(completion())), json.dumps(completion()).encode()),
    "too large": post(b"", STREAM).replace(b"content-length: 0", b"content-length: 99999999999"),
    "a bad key": post(completion(), COMPLETIONS, "authorization: Bearer er_00000000_no"),
    "a bad key there": post(generation(), STREAM, "authorization: Bearer er_00000000_no"),
    "bad time": post(generation(), STREAM, "x-request-timeout-ms: soon"),
}  # fmt: skip
LEFT = {
    "a whole answer": post(completion(stream=False)),
    "an unknown field": post(completion(temperatur=1)),
    "no JSON": post(b"{"),
    "no JSON there": post(b"{", STREAM),
    "no such model": post(completion(model="none")),
    "a model of another kind": post(completion(model="iris")),
    "a model of another kind there": post(generation(), "/v2/models/iris/generate_stream"),
    "details": post(generation(details=True), STREAM),
    "an empty prompt": post(generation(""), STREAM),
    "a large body": post(completion(prompt="a" * 200_000, max_tokens=2)),
}
NOT_TAKEN = {
    "packed": post(gzip.compress(json.dumps(completion()).encode()), COMPLETIONS, "content-encoding: gzip"),
    "HTTP/1.0": post(completion()).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "generate as a whole": post(generation(), "/v2/models/gpt/generate"),
    "no such version": post(generation(), "/v2/models/gpt/versions/7/generate_stream"),
    "a query": post(completion(), f"{COMPLETIONS}?a=1"),
}


def counters(ingress: Pretend) -> str:
    until(lambda: ingress.metrics.in_flight == 0)
    return re.sub(r"(_sum\{.*\}) .*|(_bucket.*) \d+", r"\1\2", ingress.metrics.text())


@pytest.mark.parametrize("name", [*ALIKE, *LEFT, *NOT_TAKEN])
def test_each_request_is_answered_as_the_application_does(streaming, without, fates, name) -> None:
    sent = {**ALIKE, **LEFT, **NOT_TAKEN}[name]
    if name == "HTTP/1.0":
        for one in (streaming, without):
            with connect(one) as connection, connection.makefile("rb") as stream:
                connection.sendall(sent)
                assert read_head(stream)[0] == 200
        assert not fates
        return
    assert [*map(plain, exchange(streaming, sent))] == [*map(plain, exchange(without, sent))]
    assert fates == (["answered"] if name in ALIKE else ["left"] if name in LEFT else [])
    assert counters(streaming) == counters(without)
    assert streaming.transport.requests == without.transport.requests
    assert streaming.transport.num_open == 0
    assert open_tickets(streaming) == []


@pytest.mark.parametrize("sent", [post(completion()), post(chat(), CHAT), post(generation(), STREAM)])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_errors_of_replicas(streaming: Pretend, without: Pretend, sent: bytes, after: int) -> None:
    for error in (ReplicaFailed("it broke"), Overloaded("no room", 3), ValueError("what?")):
        for one in (streaming, without):
            one.transport.error, one.transport.breaks_after = error, after or 10**9
        [(status, headers, body)] = exchange(streaming, sent)
        [(expected_status, expected_headers, expected)] = exchange(without, sent)
        assert headers.keys() == expected_headers.keys()
        if isinstance(error, ReplicaFailed):  # what it is over a link
            expected = expected.replace(b"it broke", b"model 'gpt' version 1 failed: it broke")
        if isinstance(error, Overloaded):
            expected = expected.replace(b"no room", b"model 'gpt' version 1: no room")
        if not isinstance(error, ValueError):  # over a link it is the model's
            assert status == expected_status
            assert plain((0, {}, body)) == plain((0, {}, expected))
        assert (status == 200) == bool(after)
        assert b'"error"' in body
        assert streaming.transport.num_open == 0


def test_a_key_that_may_not_use_the_model(streaming: Pretend, without: Pretend, fates: list[str]) -> None:
    ring, _, text = streaming.app.state.keys.create("app", ["infer"], KeyTerms(models=("iris",)))
    for one in (streaming, without):
        one.set(keys=ring)
    line = f"authorization: Bearer {text}"
    for sent in (post(completion(), COMPLETIONS, line), post(generation(), STREAM, line)):
        [found], [expected] = exchange(streaming, sent), exchange(without, sent)
        assert plain(found) == plain(expected)
        assert found[0] == 403
    assert fates == ["left", "answered"]
