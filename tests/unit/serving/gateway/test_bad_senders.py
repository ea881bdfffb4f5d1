"""Who sends too much, too slowly, or with too many keys, is told so; nobody else notices."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from typing import Any

import pytest

from eagleray.protocol import binary
from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.gateway.lane_body import gather
from support.serving import Pretend, bearer
from support.talking import (
    BODY,
    COMPLETE,
    DIGITS,
    INFER,
    PREDICT,
    connect,
    exchange,
    head,
    laned,
    memory_mib,
    nothing_lost,
    post,
    read,
    until,
)


@pytest.mark.parametrize("path", [INFER, DIGITS, PREDICT, COMPLETE, "/v1/chat/completions", "/admin/deploy"])
def test_ten_gigabytes_are_refused_when_they_are_announced(bounded: Pretend, path: str) -> None:
    key = (
        "authorization: "
        + bearer(bounded.admin_key if path.startswith("/admin") else bounded.infer_key)["Authorization"]
    )
    with nothing_lost(bounded):
        [answer] = exchange(bounded, head(path, 10 * 10**9, key, f"{binary.HEADER}: 100"))
    assert (answer.status, "larger than 4194304 bytes (it has 10000000000)" in answer.error) == (413, True)


@pytest.mark.parametrize("path", [INFER, PREDICT, COMPLETE])
@pytest.mark.parametrize("size", [2, 50_000])
def test_chunks_without_end_are_refused_when_they_are_too_many(path: str, size: int) -> None:
    """Of two bytes each chunk would take sixty, were it kept as it came."""
    limit = 400_000
    part = b"%x\r\n%b\r\n" % (size, b" " * size)
    many = part * (65_536 // len(part) + 1)
    with laned(max_body_bytes=limit) as ingress, nothing_lost(ingress), connect(ingress) as connection:
        connection.sendall(head(path, -1, "transfer-encoding: chunked"))
        for _ in range(2 * limit * len(part) // (size * len(many))):
            connection.sendall(many)
        with connection.makefile("rb") as stream:
            answer = read(stream)
        assert (answer.status, "came and it went on" in answer.error) == (413, True)


def test_small_chunks_take_little_more_than_they_hold() -> None:
    parts: list[bytes | bytearray] = []
    for number in range(100_000):
        gather(parts, b"%02d" % (number % 100))
        assert len(parts) <= 1024
    assert b"".join(parts) == b"".join(b"%02d" % (number % 100) for number in range(100_000))
    with laned() as ingress:
        chunks = b"".join(b"2\r\n%b\r\n" % BODY[at : at + 2] for at in range(0, len(BODY) // 2 * 2, 2))
        last = BODY[len(BODY) // 2 * 2 :]
        chunks += b"%x\r\n%b\r\n" % (len(last), last) if last else b""
        blanks = b"2\r\n  \r\n" * 3000
        sent = head(INFER, -1, "transfer-encoding: chunked") + blanks + chunks + b"0\r\n\r\n"
        with nothing_lost(ingress):
            [answer] = exchange(ingress, sent)
        assert (answer.status, len(ingress.transport.asked)) == (200, 2)


@pytest.mark.parametrize("behind", [INFER, PREDICT])
def test_what_comes_behind_a_request_that_takes_long_is_not_taken_in_without_end(behind: str) -> None:
    limit = 300_000
    part = b"c350\r\n" + b" " * 50_000 + b"\r\n"
    with laned(max_body_bytes=limit) as ingress, nothing_lost(ingress), connect(ingress) as connection:
        ingress.transport.pause_s = 0.4
        connection.sendall(post() + head(behind, -1, "transfer-encoding: chunked"))
        until(lambda: ingress.transport.num_open == 1)
        assert ingress.gateway is not None
        face: Any
        [face] = ingress.gateway.state.connections
        connection.setblocking(False)
        num_sent = 0
        while ingress.transport.num_open and num_sent < 500 * len(part):
            try:
                at = num_sent % len(part)
                num_sent += connection.send(part[at:])
            except BlockingIOError:
                pass
        held = face.cycle.body if behind == PREDICT else b"".join(face.cycle._parts)
        assert len(held) <= limit + 600_000
        connection.settimeout(20)
        ingress.transport.pause_s = 0
        with connection.makefile("rb") as stream:
            assert read(stream).status == 200
            connection.sendall(part[num_sent % len(part) :] + part * 8)
            assert read(stream).status == 413


@pytest.mark.parametrize(
    ("path", "framing"),
    [
        (INFER, "transfer-encoding: chunked"),
        (DIGITS, "content-length: 100000"),  # into a slot
        (COMPLETE, "transfer-encoding: chunked"),
        (PREDICT, "content-length: 100000"),
    ],
)
def test_a_body_that_comes_slowly_is_waited_for_so_long(path: str, framing: str) -> None:
    """Each byte would win time, if the clock began anew with it."""
    part = b"1\r\n \r\n" if "chunked" in framing else b" "
    with laned(timeout_s=0.15) as ingress, nothing_lost(ingress), connect(ingress) as connection:
        connection.sendall(head(path, -1, framing, f"{binary.HEADER}: 80000") + part)
        connection.settimeout(0.02)
        received = b""
        for _ in range(1000):
            connection.sendall(part)
            try:
                received = connection.recv(65536)
                break
            except TimeoutError:
                continue
        connection.settimeout(60)
        while b"}" not in received:
            received += connection.recv(65536) or pytest.fail(f"it ended after {received!r}")
        assert received.startswith(b"HTTP/1.1 408")
        assert b"the body was not there within 0.15 s" in received


def test_a_body_made_of_requests_is_one_body(bounded: Pretend) -> None:
    """Also where it is read past the parser, into a slot."""
    body = post() * 500
    asked = len(bounded.transport.asked)
    with nothing_lost(bounded), connect(bounded) as connection, connection.makefile("rb") as stream:
        for path, status in ((DIGITS, 400), ("/v2/models/none/infer", 404)):
            connection.sendall(head(path, len(body), f"{binary.HEADER}: 100") + body[:1000])
            if path == DIGITS:
                until(lambda: bounded.metrics.in_flight == 1)
            connection.sendall(body[1000:] + post())
            assert [read(stream).status for _ in range(2)] == [status, 200]
        connection.settimeout(0.02)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    assert len(bounded.transport.asked) == asked + 3


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("path", [INFER, PREDICT, COMPLETE])
def test_a_bomb_costs_no_more_than_the_limit(bounded: Pretend, path: str, coding: str) -> None:
    blanks = bytes(64 << 20)
    bomb = gzip.compress(blanks, 1) if coding == "gzip" else zlib.compress(blanks, 1)
    before = memory_mib()
    with nothing_lost(bounded):
        [answer, after] = exchange(bounded, post(bomb, path, f"content-encoding: {coding}"), post())
    assert (answer.status, "unpack to more" in answer.error) == (413, True)
    assert after.status == 200
    assert memory_mib() - before < 64


@pytest.mark.parametrize("size", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_keys_at_once(size: int) -> None:
    """Each has its own limits: one request is answered, and its second one is refused."""
    with laned() as ingress:
        ring, keys = ingress.app.state.keys, []
        for number in range(size):
            ring, _, text = ring.create(f"k{number}", ["infer"], KeyTerms(requests_per_s=0.01, concurrency=1))
            keys.append(f"authorization: Bearer {text}")
        ingress.set(keys=ring, is_key_needed_for_infer=True)
        connections = [connect(ingress) for _ in range(size // 10)]
        try:
            for status in (200, 429):
                for at, connection in enumerate(connections):
                    connection.sendall(b"".join(post(BODY, INFER, keys[10 * at + n]) for n in range(10)))
                found: Counter[int] = Counter()
                for connection in connections:
                    with connection.makefile("rb") as stream:
                        found.update(read(stream).status for _ in range(10))
                assert found == {status: size}
        finally:
            for connection in connections:
                connection.close()
        ingress.set(is_key_needed_for_infer=False)
        with nothing_lost(ingress):
            wrong = post(BODY, INFER, "authorization: Bearer er_00000000_" + "0" * 64)
            assert {answer.status for answer in exchange(ingress, *[wrong] * 50)} == {401}


def test_a_revoked_key_ends_its_open_stream_here_and_in_the_replica(bounded: Pretend) -> None:
    ring, key, text = bounded.app.state.keys.create("app", ["infer"])
    bounded.set(keys=ring)
    body = json.dumps({"model": "gpt", "prompt": "ab", "max_tokens": 9, "stream": True}).encode()
    bounded.transport.pause_s, bounded.transport.pauses_after = 60.0, 2
    try:
        with nothing_lost(bounded), connect(bounded) as connection, connection.makefile("rb") as stream:
            connection.sendall(post(body, COMPLETE, f"authorization: Bearer {text}"))
            while b'"text":"b"' not in stream.readline():
                pass
            assert bounded.thread is not None
            bounded.thread._loop.call_soon_threadsafe(lambda: bounded.set(keys=ring.revoke(key.id)))
            lines = [*iter(stream.readline, b"0\r\n")]
            [last] = [line[6:] for line in lines if line.startswith(b"data: ")]
            assert json.loads(last)["error"]["message"] == "the API key 'app' was revoked"
            until(lambda: bounded.transport.num_open == 0, "the replica goes on with it")
            bounded.transport.pause_s = 0.0
    finally:
        bounded.transport.pause_s, bounded.transport.pauses_after = 0.0, 0
    [answer] = exchange(bounded, post(body, COMPLETE, f"authorization: Bearer {text}"))
    assert (answer.status, "the API key is wrong or was revoked" in answer.error) == (401, True)
