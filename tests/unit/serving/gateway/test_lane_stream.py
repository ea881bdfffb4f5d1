"""Streamed texts of the fast lane on real sockets: without tasks, bounded, ended whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
from typing import Any

import pytest

from eagleray.protocol.generation import GenerationChunk
from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.gateway import lane_stream
from eagleray.serving.gateway.lane_stream import LaneStream
from support.garbage import uncollected
from support.serving import Pretend, PretendTransport, routes, with_model
from support.streams import (
    COMPLETIONS,
    STREAM,
    TEXT,
    completion,
    connect,
    exchange,
    generation,
    laned,
    pieces_of,
    post,
    read,
    read_chunk,
    read_head,
    until,
)
from support.talking import open_tickets


def test_streams_make_no_task(streaming: Pretend, fates: list[str]) -> None:
    with connect(streaming) as connection, connection.makefile("rb") as stream:
        assert streaming.thread is not None
        loop, tasks = streaming.thread._loop, []

        def made(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
            tasks.append(coro)
            return asyncio.Task(coro, loop=loop, **options)

        loop.call_soon_threadsafe(loop.set_task_factory, made)
        for _ in range(10):
            connection.sendall(post(completion()))
            assert "".join(pieces_of(read(stream)[2])) == (TEXT * 2)[:6]
        assert [coro for coro in tasks if "sleep" not in repr(coro)] == []
    assert fates == ["answered"] * 10


def test_streams_leave_nothing_to_the_collector(streaming: Pretend) -> None:
    with (
        connect(streaming) as connection,
        connection.makefile("rb") as stream,
        uncollected(LaneStream) as left,
    ):
        for _ in range(10):
            connection.sendall(post(completion()))
            read(stream)
        until(lambda: left() <= 1)  # the connection's last one


def test_pieces_that_come_together_are_one_chunk(streaming: Pretend) -> None:
    streaming.transport.pause_s = 0.001
    with connect(streaming) as connection, connection.makefile("rb") as stream:
        connection.sendall(post(completion(max_tokens=100)))
        assert read_head(stream)[0] == 200
        assert streaming.thread is not None
        streaming.thread._loop.call_soon_threadsafe(time.sleep, 0.05)  # meanwhile they come together
        chunks = [*iter(lambda: read_chunk(stream), b"")]
        assert len(pieces_of(b"".join(chunks))) == 100
        assert max(len(pieces_of(chunk)) for chunk in chunks) > 5


def test_requests_that_come_together_are_answered_in_turn(streaming: Pretend, fates: list[str]) -> None:
    streaming.transport.pause_s = 0.005
    asked = [completion(max_tokens=2), completion(max_tokens=3, stream=False), generation(), completion()]
    sent = b"".join(post(one, STREAM if "text_input" in one else COMPLETIONS) for one in asked)
    answers = exchange(streaming, sent, 4)
    assert [status for status, *_ in answers] == [200] * 4
    assert fates == ["answered", "left", "answered", "answered"]
    assert len(pieces_of(answers[3][2])) == 6


def test_a_client_that_leaves_is_not_worked_for(streaming: Pretend) -> None:
    streaming.transport.pause_s, streaming.transport.pauses_after = 30.0, 2
    for begun in (True, False):
        streaming.transport.pauses_after = 2 * begun
        with connect(streaming) as connection, connection.makefile("rb") as stream:
            connection.sendall(post(completion()) * 2)
            if begun:
                assert read_head(stream)[0] == 200
            else:
                until(lambda: streaming.transport.num_open == 1)
        until(lambda: not streaming.transport.num_open)
        until(lambda: streaming.metrics.in_flight == 0)
    text = streaming.metrics.text()
    assert re.search(r'requests_total\{.*gpt.*code="200"\} 1\b', text)
    assert re.search(r'requests_total\{.*gpt.*code="499"\} 1\b', text)
    assert open_tickets(streaming) == []


def test_a_client_that_does_not_read_is_left(monkeypatch: pytest.MonkeyPatch, fates: list[str]) -> None:
    monkeypatch.setattr(lane_stream, "MAX_HELD", 100_000)
    with laned() as ingress:
        with connect(ingress) as connection:
            connection.sendall(post(completion(max_tokens=32_768)))
            until(lambda: ingress.metrics.in_flight == 1)
            until(lambda: ingress.metrics.in_flight == 0, "it is held for ever")
            until(lambda: not ingress.transport.num_open, "the replica works on it still")
        assert exchange(ingress, post(completion()))[0][0] == 200


def test_half_an_answer_that_cannot_go_on_ends_its_connection(streaming, monkeypatch) -> None:
    """Its client would wait for the rest until it gives up."""
    streaming.transport.pause_s, streaming.transport.pauses_after = 30.0, 2
    write, written = LaneStream._write, []

    def broken(call: LaneStream, text: str, **options: Any) -> None:
        if written:
            raise MemoryError
        written.append(text)
        write(call, text, **options)
        call._out.append("more")
        call._lane.flush_soon(call)

    monkeypatch.setattr(LaneStream, "_write", broken)
    with connect(streaming) as connection, connection.makefile("rb") as stream:
        connection.sendall(post(completion()))
        assert read_head(stream)[0] == 200
        with contextlib.suppress(ConnectionResetError):
            stream.read()
    until(lambda: not streaming.transport.num_open)
    until(lambda: streaming.metrics.in_flight == 0)


@pytest.mark.parametrize("is_over", [False, True])
def test_a_client_that_reads_late_gets_all(streaming, monkeypatch, is_over) -> None:
    held: list[int] = []
    hold = LaneStream._hold

    def noted(call: LaneStream, text: str) -> None:
        hold(call, text)
        held.append(call._num_held)

    monkeypatch.setattr(LaneStream, "_hold", noted)
    number = 3000
    # Before the last piece long enough to be seen, however busy the machine.
    streaming.transport.pause_s = 0.2 if is_over else 2.0
    streaming.transport.pauses_after = number if is_over else number - 1
    with connect(streaming) as connection, connection.makefile("rb") as stream:
        until(lambda: streaming.gateway is not None and streaming.gateway.state.connections)
        assert streaming.gateway is not None
        [face] = streaming.gateway.state.connections
        face.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        connection.sendall(post(completion(max_tokens=number)))
        until(lambda: held and (streaming.transport.num_open == 0) == is_over)
        status, _, body = read(stream)
        assert (status, len(pieces_of(body))) == (200, number)
        connection.sendall(post(completion()))
        assert read(stream)[0] == 200, "the next one is answered"


@pytest.mark.parametrize("path", [COMPLETIONS, STREAM])
@pytest.mark.parametrize("pieces", [0, 2])
def test_a_key_that_is_revoked_ends_its_streams(streaming: Pretend, path: str, pieces: int) -> None:
    ring, key, text = streaming.app.state.keys.create("app", ["infer"])
    streaming.set(keys=ring)
    streaming.transport.pause_s, streaming.transport.pauses_after = 30.0, pieces
    body = completion() if path == COMPLETIONS else generation()
    with connect(streaming) as connection, connection.makefile("rb") as stream:
        connection.sendall(post(body, path, f"authorization: Bearer {text}"))
        if pieces:
            status, headers = read_head(stream)
            assert (status, b"chunked") == (200, headers[b"transfer-encoding"])
        else:
            until(lambda: streaming.transport.num_open == 1)
        assert streaming.thread is not None
        streaming.thread._loop.call_soon_threadsafe(lambda: streaming.set(keys=ring.revoke(key.id)))
        if pieces:
            said = b"".join(iter(lambda: read_chunk(stream), b"")).split(b"\n\n")[-2]
        else:
            status, _, said = read(stream)
            assert status == 401
        error = json.loads(said.removeprefix(b"data: "))["error"]
        assert (error if path == STREAM else error["message"]) == "the API key 'app' was revoked"
        until(lambda: not streaming.transport.num_open)
        streaming.transport.pause_s = 0
        connection.sendall(post(completion()))
        assert read(stream)[0] == 200, "the connection lives on"


def test_tokens_are_settled(streaming: Pretend) -> None:
    ring, key, text = streaming.app.state.keys.create("app", ["infer"], KeyTerms(tokens_per_s=400))
    streaming.set(keys=ring)
    line = f"authorization: Bearer {text}"
    asked = completion(prompt="abcd", max_tokens=50, stop=["abcdab"])
    for _ in range(3):  # 54 each at most, and the key has 100 at once
        status, _, body = exchange(streaming, post(asked, COMPLETIONS, line))[0]
        assert (status, len(pieces_of(body))) == (200, 50)
        bucket = streaming.app.admission._accounts[key.id]._tokens
        assert bucket is not None
        until(lambda bucket=bucket: bucket.has(99.0, time.monotonic()))


def test_a_key_without_tokens_is_refused(streaming: Pretend) -> None:
    ring, _, text = streaming.app.state.keys.create("app", ["infer"], KeyTerms(tokens_per_s=1))
    streaming.set(keys=ring)
    line = f"authorization: Bearer {text}"
    asked = completion(prompt="abcd", max_tokens=50, stop=["abcdab"])
    assert exchange(streaming, post(asked, COMPLETIONS, line))[0][0] == 200, "its bucket was full"
    status, headers, body = exchange(streaming, post(asked, COMPLETIONS, line))[0]
    assert (status, headers[b"x-ratelimit-resource"]) == (429, b"tokens")
    assert json.loads(body)["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize("line", ["x-request-timeout-ms: 50", "x-none: 1"])
def test_a_first_piece_that_does_not_come(line: str) -> None:
    with laned(timeout_s=0.06) as ingress:
        ingress.transport.pause_s = 30
        [(status, _, body)] = exchange(ingress, post(generation(), STREAM, line))
        assert (status, b"model 'gpt' version 1 did not answer within 0.0" in body) == (504, True)
        until(lambda: not ingress.transport.num_open, "the replica works on it still")


def test_a_stream_that_stops(fates: list[str]) -> None:
    with laned(timeout_s=0.06) as ingress:
        ingress.transport.pause_s, ingress.transport.pauses_after = 30.0, 2
        [(status, _, body)] = exchange(ingress, post(completion(), COMPLETIONS, "x-request-timeout-ms: 5000"))
        assert status == 200
        *pieces, last = [json.loads(line[6:]) for line in body.decode().split("\n\n") if line]
        assert len(pieces) == 2
        assert last["error"]["message"] == "model 'gpt' version 1 did not answer within 0.06 s"
        until(lambda: not ingress.transport.num_open, "the replica works on it still")


@pytest.mark.parametrize("pieces", [0, 2])
def test_a_replica_that_goes(streaming: Pretend, fates: list[str], pieces: int) -> None:
    streaming.transport.pause_s, streaming.transport.pauses_after = 30.0, pieces
    assert streaming.links is not None
    with connect(streaming) as connection, connection.makefile("rb") as stream:
        connection.sendall(post(completion()))
        if pieces:
            read_head(stream)
        until(lambda: streaming.transport.num_open == 1)
        [ticket] = open_tickets(streaming)
        serve = streaming.app._transport = PretendTransport()
        for transport in streaming.links._by_loop.values():
            transport._serve = serve  # type: ignore[assignment]
        streaming.links.close()
        if pieces:
            body = b"".join(iter(lambda: read_chunk(stream), b""))
            assert "its replica went away" in json.loads(body.split(b"\n\n")[-2][6:])["error"]["message"]
        else:
            assert "".join(pieces_of(read(stream)[2])) == (TEXT * 2)[:6]
    assert fates == (["answered"] if pieces else ["left"])
    assert len(serve.requests) == (0 if pieces else 1)
    assert ticket.was_lost is (not pieces), "or it might be begun a third time"
    until(lambda: streaming.metrics.in_flight == 0)


def test_a_replica_that_sends_nonsense(
    streaming: Pretend, fates: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nonsense(chunk: GenerationChunk) -> bytes:
        return b"\x01" if chunk.completion_tokens == 3 else b"\0\0\0\0" + chunk.text.encode()

    monkeypatch.setattr("eagleray.serving.link.generating.piece_bytes", nonsense)
    [(status, _, body)] = exchange(streaming, post(completion()))
    assert status == 200
    message = json.loads(body.split(b"\n\n")[-2][6:])["error"]["message"]
    assert "its replica's answer cannot be read" in message
    until(lambda: streaming.metrics.in_flight == 0)


def test_a_version_that_went_while_others_were_before_it(streaming: Pretend) -> None:
    streaming.transport.pause_s = 0.1
    with connect(streaming) as connection, connection.makefile("rb") as stream:
        connection.sendall(post(generation(max_tokens=1), STREAM) * 2 + post(completion(max_tokens=1)))
        until(lambda: streaming.transport.num_open == 1)
        streaming.set(routes=with_model(routes(), "gpt", None))
        assert read(stream)[0] == 200
        assert [read(stream)[0] for _ in range(2)] == [404, 404]


def test_the_last_words_of_a_gateway_that_is_about_to_end(streaming: Pretend) -> None:
    streaming.transport.pause_s = 0.05
    with connect(streaming) as connection, connection.makefile("rb") as stream:
        connection.sendall(post(completion(max_tokens=2)))
        until(lambda: streaming.transport.num_open == 1)
        assert streaming.gateway is not None
        streaming.gateway.state.begin_drain()
        status, headers, body = read(stream)
        assert (status, headers[b"connection"], len(pieces_of(body))) == (200, b"close", 2)
        assert stream.read() == b""
