"""Replicas that answer a gateway with garbage, with half a frame, or never: what its clients are told."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from eagleray.protocol import binary
from eagleray.protocol.generation import GenerationChunk
from eagleray.protocol.infer import InferRequest
from eagleray.serving.gateway.lookup_ray260 import Running
from eagleray.serving.link import generating, tensors
from eagleray.serving.link.frames import PLACE, RETRY, SLOT, Kind
from eagleray.serving.transport import went_away
from support.broken import BrokenReplica, frame, pieces, result
from support.serving import Pretend, PretendTransport, outputs_for, pretend, serving, target
from support.talking import (
    BODY,
    COMPLETE,
    INFER,
    PREDICT,
    Answer,
    connect,
    exchange,
    lines_of,
    nothing_lost,
    post,
    read,
    until,
)

IRIS, GPT = target("iris"), target("gpt")
OUTPUTS = outputs_for(IRIS.card, {"features": np.array([[1, 2, 3, 4]], np.float32)})
LAST = generating.end_bytes(GenerationChunk("c", "length", 1, 3))


def good(kind: Kind, stream: int, _body: bytes) -> bytes:
    """As a replica answers: with the right outputs, or with a text of three pieces."""
    if kind == Kind.INFER:
        return result(stream, *tensors.write(OUTPUTS))
    texts = (generating.piece_bytes(GenerationChunk(text, None, 1, 1)) for text in "ab")
    return pieces(stream, *texts) + result(stream, LAST)


class Broken(NamedTuple):
    """A gateway, whose `replica` of iris and gpt does as it is told, and Serve, for which `serve` stands."""

    ingress: Pretend
    replica: BrokenReplica
    serve: PretendTransport

    def tell(
        self, say: Callable[[int], bytes | None], *, closes: bool = False, is_serve_away: bool = False
    ) -> None:
        """Have the replica answer so."""
        until(lambda: all(line.pool.links for line in lines_of(self.ingress)), "there is no link again")
        self.replica.say, self.replica.closes = (lambda _kind, stream, _body: say(stream)), closes
        self.serve.error = went_away(IRIS, "ActorDiedError") if is_serve_away else None
        self.serve.asked.clear()
        self.serve.requests.clear()
        for line in lines_of(self.ingress):
            line.pool.budget._left = 10.0

    def heal(self) -> None:
        """Have it answer as it should, once there is a link to it again."""
        self.replica.say, self.replica.closes = good, False
        self.serve.error = AssertionError("it was asked")
        until(lambda: all(line.pool.links for line in lines_of(self.ingress)), "there is no link again")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    ingress = pretend(over_links=True, timeout_s=0.5)
    assert ingress.links is not None
    patch = pytest.MonkeyPatch()
    patch.setattr("eagleray.serving.link.pool._FIRST_WAIT_S", 0.002)
    replica = BrokenReplica(tmp_path_factory.mktemp("b"), good)
    address = replica.start()
    for app in (IRIS.app, GPT.app):
        ingress.links._servers[app] = (replica, address)  # type: ignore[assignment]
    with serving(ingress):
        [transport] = ingress.links._by_loop.values()
        serve = PretendTransport()
        transport._serve = serve  # type: ignore[assignment]
        yield Broken(ingress, replica, serve)
    ingress.links.close()
    patch.undo()


WAYS = {
    "lane": post(),
    "people": post(b'{"inputs":[1,2,3,4]}', PREDICT),
    "text": post(b'{"model":"gpt","prompt":"a","max_tokens":3}', COMPLETE),
    "stream": post(b'{"model":"gpt","prompt":"a","max_tokens":3,"stream":true}', COMPLETE),
}


def ask(broken: Broken, way: str) -> Answer:
    """One request, and then a good one, which is answered."""
    with nothing_lost(broken.ingress):
        [answer] = exchange(broken.ingress, WAYS[way])
        broken.heal()
    return answer


ENDS: dict[str, Callable[[int], bytes]] = {
    "garbage": lambda _: b"garbage" * 10,
    "zeros": lambda _: bytes(1000),
    "a page of HTML": lambda _: b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "a frame of 4 GB": lambda stream: frame(Kind.RESULT, stream, bytes(100), size=2**32 - 1),
    "a frame of a kind that there is not": lambda stream: frame(77, stream),
    "a request": lambda stream: frame(Kind.INFER, stream),
    "an answer to what nobody asked": lambda stream: result(stream + 1000),
    "an answer without its times": lambda stream: frame(Kind.RESULT, stream, b"short"),
    "an answer in a slot that was not given": lambda stream: result(stream, PLACE.pack(0, 0, 16), flags=SLOT),
    "an end that says nothing": lambda stream: frame(Kind.OVERLOADED, stream, b"ab"),
    "half a piece": lambda stream: frame(Kind.PIECES, 0, b"half"),
    "half a frame": lambda stream: result(stream, bytes(100))[:40],
    "nothing": lambda _: b"",
}
CLOSES = ("half a frame", "nothing")
"""Where the replica ends the connection; elsewhere it is the gateway."""


@pytest.mark.parametrize("way", ["lane", "people", "text", "stream"])
@pytest.mark.parametrize("name", ENDS)
def test_what_breaks_the_link_is_served_another_way_once(broken: Broken, name: str, way: str) -> None:
    say, closes = ENDS[name], name in CLOSES
    broken.tell(say, closes=closes)
    answer = ask(broken, way)
    assert answer.status == 200, answer
    assert len(broken.serve.asked) + len(broken.serve.requests) == 1, "Serve had it"
    broken.tell(say, closes=closes, is_serve_away=True)
    answer = ask(broken, way)
    assert (answer.status, "went away" in answer.error) == (502, True), answer
    assert answer.headers["retry-after"] == "1"


def tensor(code: int = 11, shape: tuple[int, ...] = (1,), size: int = 4, name: bytes = b"class") -> bytes:
    line = struct.pack(
        f"<B{len(name)}sBB{len(shape)}IQ", len(name), name, code, len(shape), *shape, size
    )  # fmt: skip
    eights = -(-(4 + len(line)) // 8)
    return (struct.pack("<HH", 1, eights) + line).ljust(8 * eights, b"\0")


SLOTTED = {
    "another slot": (lambda place: (place[0] + 1, 0, 16), "went away"),
    "a slot that there is not": (lambda place: (2**32 - 1, 0, 16), "went away"),
    "behind its slot": (lambda place: (place[0], 4 << 20, 1), "went away"),
    "4 GB of its slot": (lambda place: (place[0], 2**32 - 1, 2**32 - 1), "went away"),
    "its slot, with values that its head does not say": (lambda place: (place[0], 0, 3), "cannot be read"),
}


@pytest.mark.parametrize("name", SLOTTED)
def test_an_answer_in_a_slot_that_is_not_its_own(broken: Broken, name: str) -> None:
    """Its request lay in one: that is free again, with the link or without it."""
    change, said = SLOTTED[name]
    values = np.ones((4000, 4), np.float32)
    written = binary.write_request(InferRequest({"features": values}))
    sent = post(written.body, INFER, f"{binary.HEADER}: {written.json_bytes}")
    head = bytes(tensors.write(OUTPUTS)[0])
    broken.tell(lambda _: b"", is_serve_away=True)

    def say(_kind: Kind, stream: int, body: bytes) -> bytes:
        return result(stream, PLACE.pack(*change(PLACE.unpack_from(body))), head, flags=SLOT)

    broken.replica.say = say
    with nothing_lost(broken.ingress):
        [answer] = exchange(broken.ingress, sent)
        broken.heal()
    assert (answer.status, said in answer.error) == (502, True), answer


ANSWERS: dict[str, tuple[Callable[[int], bytes], int, str]] = {
    "no tensors": (result, 502, "cannot be read"),
    "tensors of garbage": (lambda stream: result(stream, b"garbage" * 10), 502, "cannot be read"),
    "a tensor of 2^63 bytes": (lambda stream: result(stream, tensor(size=2**63)), 502, "cannot be read"),
    "a tensor of 2^128 values": (
        lambda stream: result(stream, tensor(shape=(2**32 - 1,) * 4)), 502, "more than any body holds"
    ),
    "a datatype that there is not": (lambda stream: result(stream, tensor(code=99)), 502, "cannot be read"),
    "half of its tensors": (
        lambda stream: result(stream, b"".join(tensors.write(OUTPUTS))[:-4]), 502, "cannot be read"
    ),
    "other outputs": (
        lambda stream: result(stream, *tensors.write({"x": np.ones(1)})), 502, "has no output 'label'"
    ),
    "fewer outputs": (
        lambda stream: result(stream, *tensors.write({"label": OUTPUTS["label"]})), 502, "no output 'class'"
    ),
    "words that are none": (lambda stream: frame(Kind.FAILED, stream, b"\xff\0\x1b[31m" * 3000), 502, "\0"),
    "values that were wrong": (lambda stream: frame(Kind.REFUSED, stream, b"too small"), 400, "too small"),
    "no time left": (lambda stream: frame(Kind.EXPIRED, stream, b"late"), 504, "did not answer within"),
    "no room for 49 days": (
        lambda stream: frame(Kind.OVERLOADED, stream, RETRY.pack(2**32 - 1) + b"full"), 503, "full"
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", ["lane", "people"])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_none_is_the_replicas_fault(broken: Broken, name: str, way: str) -> None:
    say, status, said = ANSWERS[name]
    broken.tell(say)
    num_links = broken.replica.num_links
    answer = ask(broken, way)
    assert (answer.status, said in answer.error) == (status, True), answer
    assert broken.replica.num_links == num_links, "the link goes on"
    assert broken.serve.asked == [], "it would fail there too"


TEXTS: dict[str, tuple[Callable[[int], bytes], str]] = {
    "a piece that is no UTF-8": (lambda stream: pieces(stream, b"\1\0\0\0\xc3("), "is not UTF-8"),
    "a piece without its tokens": (lambda stream: pieces(stream, b"a"), "a piece of a text in 1 bytes"),
    "an end that is none": (lambda stream: result(stream, b"abc"), "the end of a text in 3 bytes"),
    "a reason that there is not": (lambda stream: result(stream, LAST[:-1] + b"\7"), "reason 7"),
    "an end that is no UTF-8": (lambda stream: result(stream, b"\1\0\0\0\xff" + LAST[-5:]), "is not UTF-8"),
}


@pytest.mark.parametrize("way", ["text", "stream"])
@pytest.mark.parametrize("is_begun", [False, True], ids=["at once", "after a piece"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_none_is_told_at_once(broken: Broken, name: str, is_begun: bool, way: str) -> None:
    """And not when the time for its next piece is over."""
    say, said = TEXTS[name]
    first = generating.piece_bytes(GenerationChunk("a", None, 1, 1))

    def texts(stream: int) -> bytes:
        # After a piece its end comes too: it was told that nobody waits for it.
        end = frame(Kind.EXPIRED, stream) if "piece" in name else b""
        return pieces(stream, first) * is_begun + say(stream) + end

    broken.tell(texts)
    answer = ask(broken, way)
    if way == "stream" and is_begun:
        events = [line[6:] for line in answer.body.split(b"\n") if line.startswith(b"data: ")]
        assert answer.status == 200
        assert json.loads(events[0])["choices"][0]["text"] == "a"
        error = json.loads(events[-1])["error"]["message"]
    else:
        assert answer.status == 502, answer
        error = answer.error
    assert "its replica's answer cannot be read" in error
    assert way == "stream" or said in error
    assert broken.serve.requests == []


def test_pieces_without_end_fill_no_memory(broken: Broken) -> None:
    piece = generating.piece_bytes(GenerationChunk("a", None, 1, 1))
    broken.tell(lambda stream: pieces(stream, *[piece] * 1000) + frame(Kind.EXPIRED, stream))
    answer = ask(broken, "text")
    assert (answer.status, "more pieces than the 3 tokens it was asked for" in answer.error) == (502, True)


@pytest.mark.parametrize("way", ["lane", "stream"])
def test_a_replica_that_never_answers(broken: Broken, way: str) -> None:
    broken.tell(lambda _: None)
    broken.replica.heard.clear()
    [answer] = exchange(broken.ingress, WAYS[way])
    assert (answer.status, "did not answer within 0.5 s" in answer.error) == (504, True), answer
    until(lambda: len(broken.replica.heard) == 2)
    (_, stream), cancelled = broken.replica.heard
    assert cancelled == (Kind.CANCEL, stream), "it need not go on with it"
    assert broken.serve.asked == broken.serve.requests == []
    broken.heal()
    assert [answer.status for answer in exchange(broken.ingress, *WAYS.values())] == [200] * 4
    num_links = broken.replica.num_links
    broken.replica.hang_up()  # else it has its request for ever
    until(lambda: broken.replica.num_links == num_links + 2)
    broken.heal()
    with nothing_lost(broken.ingress):
        pass


def test_half_a_frame_and_then_nothing_costs_one_request_where_there_is_another_replica(
    broken: Broken, tmp_path: Path
) -> None:
    """The other one has all of them: the silent one has a request that it has not ended."""
    ingress, links = broken.ingress, broken.ingress.links
    assert links is not None
    assert ingress.thread is not None
    [transport] = links._by_loop.values()
    stuck = BrokenReplica(tmp_path, lambda _kind, stream, _body: result(stream, bytes(100))[:40])
    both = [Running(links._servers[IRIS.app][1], 1000), Running(stuck.start(), 1000)]
    broken.heal()
    line = transport.line(IRIS.app)
    assert line is not None
    try:
        ingress.thread._loop.call_soon_threadsafe(transport.update, IRIS.app, both)
        until(lambda: len(line.pool.links) == 2)
        statuses = [exchange(ingress, post())[0].status for _ in range(30)]
        assert sorted(statuses) == [200] * 29 + [504]
        assert len(stuck.heard) == 2, "its request, and that nobody waits for it"
        ingress.thread._loop.call_soon_threadsafe(transport.update, IRIS.app, both[:1])
        stuck.close()
        until(lambda: len(line.pool.links) == 1)
    finally:
        stuck.close()
    with nothing_lost(ingress), connect(ingress) as connection, connection.makefile("rb") as stream:
        connection.sendall(post(BODY, INFER))
        assert read(stream).status == 200


def test_a_frame_that_is_not_sealed_with_the_links_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On TCP, where somebody between the two could change it, or send one of his own."""
    caplog.set_level("INFO")
    ingress = pretend(over_links=True)
    assert ingress.links is not None
    replica = BrokenReplica(tmp_path, lambda _kind, stream, _body: result(stream, bytes(100)), is_tcp=True)
    ingress.links._servers[IRIS.app] = (replica, replica.start())  # type: ignore[assignment]
    with serving(ingress):
        [transport] = ingress.links._by_loop.values()
        serve = PretendTransport()
        transport._serve = serve  # type: ignore[assignment]
        assert [answer.status for answer in exchange(ingress, post(), post())] == [200, 200]
        assert len(serve.asked) == 2, "what the replica said was not taken"
        assert "a frame's seal is wrong" in caplog.text
        serve.error = went_away(IRIS, "ActorDiedError")
        [answer] = exchange(ingress, post())
        assert (answer.status, "went away" in answer.error) == (502, True)
    ingress.links.close()
