"""Large bodies in slots: what they hold is read by whom it is for, for as long as anybody reads it."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from eagleray.protocol import binary
from eagleray.protocol.infer import InferRequest
from eagleray.protocol.tensors import Array
from eagleray.serving.gateway.lane_body import SlotBody, send_from
from eagleray.serving.gateway.line import Line
from eagleray.serving.ingress.http import announced_bytes
from eagleray.serving.link.answers import Answer
from eagleray.serving.link.frames import TOO_LARGE, Kind
from eagleray.serving.link.pool import Pool
from eagleray.serving.link.ring import Ring, RingOptions
from eagleray.serving.routes import Target
from support.broken import BrokenReplica, frame
from support.links import KEY, MAX_FRAME_BYTES, Doubler, Served, has_link, run
from support.links import serving as replica
from support.links import until as until_true
from support.serving import Pretend, PretendTransport, pretend, serving, target
from support.talking import DIGITS, INFER, connect, laned, nothing_lost, post, read, until


@pytest.mark.parametrize(
    ("length", "num_bytes"),
    [("0", 0), ("5", 5), ("007", 7), ("0" * 14 + "1000000", 1_000_000), ("0" * 5000, 0), ("+5", 0), ("٣", 0)],
)
def test_zeros_in_front_of_a_length_change_nothing(length: str, num_bytes: int) -> None:
    assert announced_bytes({"content-length": length}) == num_bytes


@pytest.mark.parametrize("zeros", [0, 12, 13, 14, 1000])
def test_a_body_is_as_long_as_the_parser_says(zeros: int) -> None:
    """Else a request that stands inside another's body would be answered."""
    inner = b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n"
    body = (b"x" * 100_000 + inner).ljust(1_000_000, b"y")
    sent = post(body, INFER, f"{binary.HEADER}: 100")
    sent = sent.replace(b"content-length: ", b"content-length: " + b"0" * zeros)
    begun = sent.index(b"\r\n\r\n") + 1004
    with (
        laned(max_body_bytes=2_000_000) as ingress,
        nothing_lost(ingress),
        connect(ingress) as connection,
        connection.makefile("rb") as stream,
    ):
        connection.sendall(sent[:begun])
        connection.sendall(sent[begun:])
        connection.sendall(post())
        answer = read(stream)
        assert answer.status == 400
        if zeros > 12:
            assert "send it without zeros in front" in answer.error
            assert stream.read() == b""
        else:
            assert "JSON" in answer.error
            assert read(stream).status == 200, "the one behind it is next"


class Holding(PretendTransport):
    """Reads what it is asked when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.num_held = 0
        self.may_go = asyncio.Event()

    async def infer(
        self,
        target: Target,
        inputs: Mapping[str, Array],
        *,
        timeout_s: float,
        key: str = "",
        is_second: bool = False,
    ) -> dict[str, Array]:
        self.num_held += 1
        await self.may_go.wait()
        return await super().infer(target, inputs, timeout_s=timeout_s, is_second=is_second)


@pytest.fixture
def away(tmp_path: Path) -> Iterator[tuple[Pretend, Holding]]:
    """A gateway whose replica of digits computes what no link carries; and Serve, which has it then."""
    ingress = pretend(over_links=True, max_body_bytes=2_000_000)
    assert ingress.links is not None
    replica = BrokenReplica(
        tmp_path, lambda _kind, stream, _body: frame(Kind.FAILED, stream, f"{TOO_LARGE}: 9 bytes".encode())
    )
    ingress.links._servers[target("digits", 2).app] = (replica, replica.start())  # type: ignore[assignment]
    with serving(ingress):
        [transport] = ingress.links._by_loop.values()
        serve = Holding()
        transport._serve = serve  # type: ignore[assignment]
        yield ingress, serve
    ingress.links.close()


def images(number: int) -> bytes:
    """A request for 600 images, whose class each that is; its values begin at an odd place."""
    values = np.zeros((600, 1, 8, 8), np.float32)
    values[:, 0, 0, 0] = number
    written = binary.write_request(InferRequest({"image": values}, id="x" * number))
    return post(written.body, DIGITS, f"{binary.HEADER}: {written.json_bytes}")


def test_serve_reads_what_the_request_had_in_its_slot(away: tuple[Pretend, Holding]) -> None:
    """Serve's handles write a request down some time later, in a thread of their own."""
    ingress, serve = away
    with nothing_lost(ingress), connect(ingress) as first, connect(ingress) as second:
        for count, number, connection in ((1, 3, first), (2, 5, second)):
            sent = images(number)
            connection.sendall(sent[:2000])
            until(lambda count=count: ingress.metrics.in_flight == count)
            connection.sendall(sent[2000:])
            until(lambda count=count: serve.num_held == count)
        assert ingress.thread is not None
        ingress.thread._loop.call_soon_threadsafe(serve.may_go.set)
        for number, connection in ((3, first), (5, second)):
            with connection.makefile("rb") as stream:
                answer = read(stream)
            outputs = {output["name"]: output["data"] for output in json.loads(answer.body)["outputs"]}
            assert outputs["class"] == [number] * 600


class Stuck(Doubler):
    """Reads nothing until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go = threading.Event()

    def flush(self) -> None:
        self.may_go.wait(20)
        super().flush()


def test_what_waits_in_a_socket_is_not_another_bodys() -> None:
    """A client that leaves gives its slot back at once, and the link seals what it sends as it was then."""

    async def main(served: Served) -> None:
        pool = Pool(KEY, node="elsewhere", max_frame_bytes=MAX_FRAME_BYTES, ring=None)
        pool.update([served.address])
        await has_link(pool)
        [link], line = pool.links, Line("app", pool)
        ring = Ring(RingOptions(slots=4, slot_bytes=4 << 20))
        answers: list[Answer] = []
        for number in range(4):
            slot = ring.take()
            assert slot is not None
            values = np.frombuffer(slot.view[: 3 << 20], np.float32).reshape(2, 1, -1)
            request = InferRequest({"x": values[0], "y": values[1]})
            body = SlotBody(link, slot, 0, 3 << 20)
            sent, kept = send_from(line, body, request, "0", 60_000, answers.append)
            assert sent is not None
            assert kept is body
            await asyncio.sleep(0)  # what the kernel does not take is the link's
            if number == 3:
                assert link.num_waiting_bytes() > 3 << 20
                sent.cancel()
                slot.view[: 3 << 20] = b"\1" * (3 << 20)
        served.handler.may_go.set()
        await until_true(lambda: len(answers) == 3)
        await until_true(lambda: not link.in_flight)
        assert {answer.kind for answer in answers} == {Kind.RESULT}
        assert link.is_open
        await pool.close()
        ring.close()

    with replica(Stuck()) as served:
        run(main(served))
    gc.collect()  # what held a slot's memory: other tests look for what is left
