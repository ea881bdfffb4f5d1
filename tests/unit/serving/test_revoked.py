"""A key that is revoked while its request is under way: the application says so, wherever the request is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from eagleray.protocol import binary, fast
from eagleray.serving.gateway.lane import LaneFace
from eagleray.serving.ingress import app
from support.serving import Pretend, pretend, serving
from support.talking import COMPLETE, INFER, Answer, connect, exchange, head, laned, post, read, until


@pytest.fixture(scope="module")
def ingress() -> Iterator[Pretend]:
    found = pretend()
    with serving(found):
        yield found


def revoked(ingress: Pretend, lines: list[str], body: bytes, length: int, when: Callable[[], Any]) -> Answer:
    """What a request is told whose key is revoked then."""
    ring, key, text = ingress.app.state.keys.create("app", ["infer"])
    ingress.set(keys=ring)
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        connection.sendall(head(INFER, length, f"authorization: Bearer {text}", *lines) + body)
        until(lambda: ingress.metrics.in_flight == 1 and when())
        assert ingress.thread is not None
        ingress.thread._loop.call_soon_threadsafe(lambda: ingress.set(keys=ring.revoke(key.id)))
        return read(stream)


@pytest.mark.parametrize("lines", [[], ["content-encoding: gzip"]], ids=["as it is", "packed"])
def test_while_its_body_comes(ingress: Pretend, lines: list[str]) -> None:
    answer = revoked(ingress, lines, b"x" * 10, 1000, lambda: True)
    assert (answer.status, answer.error) == (401, "the API key 'app' was revoked")
    until(lambda: ingress.metrics.in_flight == 0)


def test_while_a_thread_reads_its_body(ingress: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which nobody can end: it is left alone after a moment."""
    has_begun, may_end = threading.Event(), threading.Event()

    def slow(*_: Any, quick_bytes: int | None = None) -> None:
        if quick_bytes is not None:
            raise binary.TakesLong
        has_begun.set()
        may_end.wait(20)

    monkeypatch.setattr(fast, "read_request", slow)
    monkeypatch.setattr(app, "END_S", 0.05)
    body = b"x" * 200_000
    answer = revoked(ingress, [], body, len(body), has_begun.is_set)
    may_end.set()
    assert (answer.status, answer.error) == (401, "the API key 'app' was revoked")
    until(lambda: ingress.metrics.in_flight == 0)


def test_between_the_lane_and_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole text is handed over, and for a moment nobody has it."""
    hand_over = LaneFace.hand_over
    with laned() as ingress:
        ring, key, text = ingress.app.state.keys.create("app", ["infer"])
        ingress.set(keys=ring)

        def handed_over(face: LaneFace, *arguments: Any) -> None:
            hand_over(face, *arguments)
            ingress.set(keys=ring.revoke(key.id))

        monkeypatch.setattr(LaneFace, "hand_over", handed_over)
        asked = b'{"model":"gpt","prompt":"a","max_tokens":3}'
        [answer] = exchange(ingress, post(asked, COMPLETE, f"authorization: Bearer {text}"))
        assert (answer.status, answer.error) == (401, "the API key 'app' was revoked")
        assert answer.headers["www-authenticate"]
        until(lambda: ingress.metrics.in_flight == 0)
        assert not ingress.transport.requests
