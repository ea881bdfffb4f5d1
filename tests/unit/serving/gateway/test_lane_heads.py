"""Heads that come again are not read again, and whatever comes is answered as if they were."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from eagleray.serving.gateway.lane import LaneFace
from eagleray.serving.gateway.lane_heads import MAX_HEAD_BYTES, Heads, KnownHead, head_of
from eagleray.serving.gateway.settings import GatewaySettings
from support.serving import Pretend, pretend, serving, with_model
from support.talking import BODY, INFER, IRIS, Answer, connect, exchange, head, laned, post, read, until

OTHER = json.dumps({"inputs": [{**IRIS["inputs"][0], "data": [1, 2, 3, 5]}]}).encode()
CHANGING = ("date", "x-request-id", "traceparent", "server-timing")


@pytest.fixture
def repeats(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The heads that were not read again."""
    found: list[bytes] = []
    repeated = LaneFace._repeated

    def noted(face: LaneFace, known: KnownHead, head: bytes, data: bytes) -> bool:
        is_taken = repeated(face, known, head, data)
        if is_taken:
            found.append(head)
        return is_taken

    monkeypatch.setattr(LaneFace, "_repeated", noted)
    return found


@pytest.fixture
def ingress(repeats: list[bytes]) -> Iterator[Pretend]:
    with laned(max_body_bytes=100_000) as found:
        yield found


def told(answer: Answer) -> tuple[int, dict[str, str], bytes]:
    headers = {name: value for name, value in answer.headers.items() if name not in CHANGING}
    return answer.status, headers, answer.body


def test_a_head_that_came_twice_is_read_no_more(ingress: Pretend, repeats: list[bytes]) -> None:
    answers = exchange(ingress, *[post()] * 3, post(OTHER), post())
    assert [told(answer) for answer in answers[:3]] == [told(answers[4])] * 3
    assert answers[3].status == 200
    assert answers[3].body != answers[0].body
    assert repeats == [head()] * 3
    exchange(ingress, *[post()] * 2)
    assert len(repeats) == 5, "what one connection knows all know"


BAD = {
    "no key": post(BODY, INFER, "authorization: Bearer er_00000000_" + "0" * 64),
    "a wrong shape": post(BODY.replace(b"[1, 4]", b"[4, 1]")),
    "no JSON": post(b"{" * 20),
    "no body": post(b""),
    "too large": post(b" " * 100_001),
    "a million dimensions": post(b'{"inputs": [{"shape": [' + b"1," * 40_000 + b"1]}]}"),
    "no such model": post(BODY, "/v2/models/no/infer"),
    "packed": post(gzip.compress(BODY), INFER, "content-encoding: gzip"),
    "no time": post(BODY, INFER, "x-request-timeout-ms: 0"),
    "another site's": post(BODY, INFER, "origin: https://example.com"),
    "a name that leads here": post(BODY, INFER, "host: localhost"),
    "chunked": head(INFER, -1, "transfer-encoding: chunked") + b"1\r\n{\r\n0\r\n\r\n",
    "another protocol": post(BODY, INFER, "connection: upgrade", "upgrade: h2c"),
    "it waits for its body": post(BODY, INFER, "expect: 100-continue"),
    "digits too many": post().replace(b"content-length: ", b"content-length: 00"),
    "two lengths": post(BODY, INFER, f"content-length: {len(BODY)}"),
    "old": post().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "its last": post(BODY, INFER, "connection: close"),
}


READ_EACH_TIME = (
    "no such model", "packed", "chunked", "another protocol", "it waits for its body", "two lengths", "old",
    "its last", "digits too many",
)  # fmt: skip


@pytest.mark.parametrize(("name", "sent"), BAD.items(), ids=BAD)
def test_it_is_answered_the_fourth_time_as_the_first(
    ingress: Pretend, repeats: list[bytes], name: str, sent: bytes
) -> None:
    """And a good one after it, where the connection lives on."""
    found = []
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        for _ in range(4):
            connection.sendall(sent)
            try:
                found.append(read(stream))
                while found[-1].status == 100:
                    found[-1] = read(stream)
            except (AssertionError, ConnectionError):
                break  # it was closed
        assert name not in READ_EACH_TIME or repeats == []
        if len(found) == 4:
            connection.sendall(post())
            assert read(stream).status == 200
    assert found
    assert [told(answer) for answer in found] == [told(found[0])] * len(found)


def test_two_that_come_together_are_two(ingress: Pretend, repeats: list[bytes]) -> None:
    exchange(ingress, *[post()] * 3)
    repeats.clear()
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        connection.sendall(post() + post(OTHER))
        one, two = read(stream), read(stream)
        assert (one.status, two.status, one.body == two.body) == (200, 200, False)
        assert repeats == []
        connection.sendall(post())
        assert told(read(stream)) == told(one)
        assert repeats == [head()]


@pytest.mark.parametrize("at", [10, len(head()) - 2, len(head()), len(head()) + 5, len(post()) - 1])
def test_one_that_comes_in_parts_is_one(ingress: Pretend, repeats: list[bytes], at: int) -> None:
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(3):
            connection.sendall(post())
            assert read(stream).status == 200
        connection.sendall(post()[:at])
        [face] = ingress.gateway.state.connections if ingress.gateway else []
        until(lambda: face._is_in_head or face._is_in_body)
        connection.sendall(post()[at:] + post())
        assert [read(stream).status for _ in range(2)] == [200, 200]
        assert len(repeats) == 1


def test_what_it_leads_to_is_looked_up_each_time(ingress: Pretend, repeats: list[bytes]) -> None:
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        for _ in range(3):
            connection.sendall(post())
            assert read(stream).status == 200
        before = ingress.app.state
        ingress.app.state = replace(before, routes=with_model(before.routes, "iris", None))
        connection.sendall(post())
        assert read(stream).status == 404
        ingress.app.state = before
        connection.sendall(post())
        assert read(stream).status == 200
    assert len(repeats) == 2


def test_a_key_that_was_revoked_is_refused(ingress: Pretend, repeats: list[bytes]) -> None:
    keys, made, key = ingress.app.state.keys.create("app", ["infer"])
    ingress.app.state = replace(ingress.app.state, keys=keys)
    sent = post(BODY, INFER, f"authorization: Bearer {key}")
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        for _ in range(3):
            connection.sendall(sent)
            assert read(stream).status == 200
        ingress.app.state = replace(ingress.app.state, keys=keys.revoke(made.id))
        connection.sendall(sent)
        assert read(stream).status == 401
    assert len(repeats) == 2


def test_heads_that_differ_each_time_are_not_kept(ingress: Pretend, repeats: list[bytes]) -> None:
    exchange(ingress, *(post(BODY, INFER, f"x-request-id: {number}") for number in range(6)))
    exchange(ingress, *[post(BODY, INFER, "x-filler: " + "y" * MAX_HEAD_BYTES)] * 4)
    assert repeats == []


def test_the_access_log_knows_the_sender_behind_a_proxy(repeats: list[bytes]) -> None:
    lines: list[Any] = []

    class Lines:
        def write(self, line: bytes) -> None:
            lines.append(json.loads(line)["client"])

        def close(self) -> None: ...

    found = pretend(over_links=True)
    found.app.access_log = Lines()  # type: ignore[assignment]
    with serving(found, settings=GatewaySettings(trusted_proxies=("127.0.0.1",))):
        forwarded = [post(BODY, INFER, f"x-forwarded-for: 203.0.113.{number}") for number in (7, 8)]
        exchange(found, *[forwarded[0]] * 3, *[forwarded[1]] * 3, forwarded[0])
    assert found.links is not None
    found.links.close()
    assert lines == ["203.0.113.7"] * 3 + ["203.0.113.8"] * 3 + ["203.0.113.7"]
    assert len(repeats) == 3


def test_one_that_comes_while_another_is_worked_on_waits_for_it(ingress: Pretend) -> None:
    one, two = (exchange(ingress, *[post(body)] * 3)[-1].body for body in (BODY, OTHER))
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        ingress.transport.is_holding = True
        connection.sendall(post())
        until(lambda: ingress.transport.num_open == 1)
        connection.sendall(post(OTHER))
        [face] = [face for face in ingress.gateway.state.connections if face._running is not None]
        until(lambda: face.pipeline)
        ingress.transport.is_holding = False
        assert [read(stream).body for _ in range(2)] == [one, two]


def test_while_a_gateway_drains_a_known_head_is_a_connections_last(ingress: Pretend) -> None:
    async def drain() -> None:
        ingress.gateway.state.begin_drain()

    with connect(ingress) as connection, connection.makefile("rb") as stream:
        for _ in range(3):
            connection.sendall(post())
            assert "connection" not in read(stream).headers
        ingress.thread.submit(drain()).result(5)
        connection.sendall(post())
        assert read(stream).headers["connection"] == "close"
        assert stream.read() == b""


REFUSED = post(BODY, INFER, "authorization: Bearer er_00000000_" + "0" * 64)


@pytest.mark.parametrize("before", [[post()] * 3, [REFUSED + post()]], ids=["known", "behind a refusal"])
def test_a_request_that_takes_longer_than_idle_connections_are_kept_keeps_its_own(before, repeats) -> None:
    found = pretend(over_links=True)
    with (
        serving(found, settings=GatewaySettings(keep_alive_s=1)),
        connect(found) as connection,
        connection.makefile("rb") as stream,
    ):
        for sent in before:
            found.transport.pause_s = 1.6 if sent is before[-1] else 0
            connection.sendall(sent)
            answers = [read(stream).status for _ in range(sent.count(b"POST"))]
            assert answers[-1] == 200
    found.links.close()


def test_heads_are_bounded() -> None:
    heads, known = Heads(), KnownHead(b"/", [], {}, 0)
    for number in range(2000):
        heads.keep(b"%d" % number, known)
    assert heads.find(b"1999") is known
    assert len(heads._known) <= 512


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"POST / HTTP/1.1\r\n\r\nbody\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n"),
        (b"POST / HTTP/1.1\r\n", b""),
        (b"\r\n\r\n", b""),
        (b"x" * MAX_HEAD_BYTES + b"\r\n\r\n", b""),
    ],
)
def test_where_a_head_ends(data: bytes, found: bytes) -> None:
    assert head_of(data) == found
