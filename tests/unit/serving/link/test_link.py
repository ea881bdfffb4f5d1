from __future__ import annotations

import asyncio
import gc
import struct
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from eagleray.errors import ServiceError
from eagleray.serving.link import client, session, tensors
from eagleray.serving.link.answers import Answer
from eagleray.serving.link.frames import Kind, Timings
from eagleray.serving.link.ring import RingOptions
from eagleray.serving.link.server import LinkServer
from support.links import (
    KEY,
    MAX_FRAME_BYTES,
    RING,
    TIMINGS,
    Doubler,
    Lost,
    answered,
    asked,
    body_of,
    filled,
    linked,
    num_free,
    placed,
    rings,
    run,
    serving,
    slot_of,
    until,
)

LARGE = np.arange(150_000, dtype=np.float32)
HALF = LARGE[:120_000]
"""With room in its slot for an answer as large."""
KINDS = pytest.mark.parametrize("kind", ["unix", "tcp"])


def in_slot(link, array: np.ndarray, deadline_ms: int = 0, offset: int = 0):
    slot, head, length = filled(link, array, offset)
    return answered(lambda take: link.infer_in_slot(slot, offset, length, head, deadline_ms, take))


def outputs(answer: Answer) -> dict[str, np.ndarray]:
    assert answer.kind == Kind.RESULT, answer
    body = body_of(answer)
    return tensors.read_apart(answer.head, body) if answer.head else tensors.read(body)


@KINDS
def test_an_answer_comes_back(kind: str) -> None:
    async def main() -> None:
        link = await linked(served.address, kind)
        answer = await asked(link, x=np.array([1.5, 2.0], np.float32), t=np.array(["ö"], object))
        found = outputs(answer)
        assert found["x"].tolist() == [3.0, 4.0]
        assert found["t"].tolist() == ["ö"]
        assert answer.timings == TIMINGS
        assert link.instance == served.address["instance"]
        assert link.in_flight == 0
        link.close()

    with serving() as served:
        run(main())


@KINDS
def test_large_bodies_through_the_socket(kind: str) -> None:
    async def main() -> None:
        link = await linked(served.address, kind)
        answers = await asyncio.gather(*(asked(link, x=LARGE + index) for index in range(6)))
        for index, answer in enumerate(answers):
            assert (outputs(answer)["x"] == (LARGE + index) * 2).all()
        link.close()

    with serving() as served:
        run(main())


@KINDS
def test_asyncios_own_loop_will_do_as_well(kind: str) -> None:
    async def main() -> None:
        link = await linked(served.address, kind)
        for answer in await asyncio.gather(*(asked(link, x=array) for array in (LARGE, LARGE[:3], LARGE))):
            assert outputs(answer)["x"][2] == 4.0
        if kind == "unix":
            answer = await in_slot(link, LARGE)
            assert outputs(answer)["x"][2] == 4.0
            answer.release()
        link.close()
        await until(lambda: not link.is_open and link._transport is None)

    with serving() as served:
        asyncio.run(main())


def test_large_bodies_through_the_ring() -> None:
    async def main() -> None:
        link = await linked(served.address)
        for turn in range(3):
            asked_for = [in_slot(link, HALF + index, offset=64 * turn) for index in range(4)]
            assert link.take_slot() is None  # all are taken: through the socket
            through_socket = asked(link, x=LARGE)
            for index, answer in enumerate(await asyncio.gather(*asked_for)):
                assert answer.head  # the answer, as large, came in the same slot
                assert (outputs(answer)["x"] == (HALF + index) * 2).all()
                answer.release()
                answer.release()
            assert (outputs(await through_socket)["x"] == LARGE * 2).all()
        assert num_free(link) == 4
        link.close()

    with serving() as served:
        run(main())


@pytest.mark.parametrize("offset", [0, 64, 100])
def test_a_request_stays_in_its_slot_beside_its_answer(offset: int) -> None:
    """A replica that dies with its answer written and not sent leaves what another one is to be sent."""

    async def main() -> None:
        link = await linked(served.address)
        slot, head, length = filled(link, HALF, offset)
        answer = await answered(lambda take: link.infer_in_slot(slot, offset, length, head, 0, take))
        assert answer.head
        assert (outputs(answer)["x"] == HALF * 2).all()
        assert slot.view[offset : offset + length] == HALF.tobytes()
        link.close()

    with serving() as served:
        run(main())


class Echo(Doubler):
    """Answers with views of what came."""

    def answer(self, call) -> None:
        call.answer(tensors.write(call.inputs()), TIMINGS)


class Summing(Doubler):
    def answer(self, call) -> None:
        call.answer(tensors.write({"y": call.inputs()["x"].sum(keepdims=True)}), TIMINGS)


@pytest.mark.parametrize("handler", [Echo, Summing])
def test_an_answer_that_is_small_or_has_no_room_in_the_slot_comes_through_the_socket(handler) -> None:
    async def main() -> None:
        link = await linked(served.address)
        answer = await in_slot(link, LARGE)
        assert answer.head == b""
        (found,) = outputs(answer).values()
        assert (found == (LARGE if handler is Echo else LARGE.sum())).all()
        assert num_free(link) == RING.slots  # free again without `release`
        link.close()

    with serving(handler()) as served:
        run(main())


def test_a_slot_is_not_free_before_its_answer() -> None:
    async def main() -> None:
        link = await linked(served.address)
        first = in_slot(link, LARGE)
        await until(lambda: len(handler.calls) == 1)
        assert num_free(link) == RING.slots - 1
        link.cancel(1)
        await until(lambda: len(handler.cancelled) == 1)
        assert num_free(link) == RING.slots - 1  # cancelled, and still being read
        assert (served.do(handler.calls[0].inputs()["x"].copy) == LARGE).all()
        served.do(handler.calls[0].expire)
        await until(lambda: num_free(link) == RING.slots)
        assert not first.done()  # nobody waits for it
        link.close()

    with serving(Doubler()) as served:
        handler = served.handler
        handler.is_holding = True
        run(main())


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_a_slot_has_one_user(seed: int, caplog) -> None:
    """Requests, answers, cancellations and late releases in any order: each call finds its own values."""
    random = np.random.default_rng(seed)

    class Checking(Doubler):
        def answer(self, call) -> None:
            (values,) = call.inputs().values()
            assert (values == values[0]).all()
            is_large = random.random() < 0.5  # the answer comes in the slot
            call.answer(tensors.write({"y": values if not is_large else values + 1}), TIMINGS)

    def answer_some(share: float) -> None:
        held, handler.calls = handler.calls, []
        for call in held:
            if random.random() < share:
                handler.answer(call)
            else:
                handler.calls.append(call)

    async def main() -> None:
        link = await linked(served.address)
        wanted: dict[int, float] = {}
        got: list[Answer] = []

        def take(answer: Answer, stream: int) -> None:
            (values,) = outputs(answer).values()
            assert values[0] in (wanted[stream], wanted[stream] + 1)
            assert (values == values[0]).all()
            got.append(answer)

        for number in range(300):
            slot = link.take_slot()
            if slot is not None:
                head, length = placed(slot.view, {"x": np.full(9000, number, np.float32)})
                stream = link._stream + 1
                wanted[stream] = number
                link.infer_in_slot(slot, 0, length, head, 0, lambda answer, s=stream: take(answer, s))
            if random.random() < 0.2 and wanted:
                link.cancel(int(random.choice(list(wanted))))
            if random.random() < 0.4:
                await asyncio.sleep(0)
            if random.random() < 0.3:
                served.do(lambda: answer_some(0.5))
            while got and random.random() < 0.6:
                got.pop(int(random.integers(len(got)))).release()
        await until(lambda: served.do(lambda: answer_some(1.0)) is None and link.in_flight == 0)
        for answer in got:
            answer.release()
        assert num_free(link) == RING.slots
        assert link.is_open
        assert len(wanted) > 30
        assert "failed" not in caplog.text
        link.close()

    with serving(Checking()) as served:
        handler = served.handler
        handler.is_holding = True
        run(main())


def test_a_slot_that_was_given_back_or_is_anothers_is_not_sent() -> None:
    async def main() -> None:
        link, other = await linked(served.address), await linked(served.address)
        slot, strange = slot_of(link), slot_of(other)
        slot.release()
        slot.release()
        assert num_free(link) == RING.slots
        for wrong in (slot, strange):
            with pytest.raises(ValueError, match="of another link, or was given back"):
                link.infer_in_slot(wrong, 0, 8, b"", 0, print)
        for offset, length in ((-1, 8), (0, RING.slot_bytes + 1), (RING.slot_bytes, 1)):
            with pytest.raises(ValueError, match="of a slot of"):
                other.infer_in_slot(strange, offset, length, b"", 0, print)
        assert link.in_flight == other.in_flight == 0

    with serving() as served:
        run(main())


@KINDS
def test_requests_of_one_tick_arrive_together(kind: str) -> None:
    async def main() -> None:
        link = await linked(served.address, kind)
        for _ in range(3):
            answers = [asked(link, x=np.full(4, index, np.float32)) for index in range(50)]
            for index, answer in enumerate(await asyncio.gather(*answers)):
                assert outputs(answer)["x"][0] == 2 * index
        assert served.handler.flushes == [50, 50, 50]
        link.close()

    with serving() as served:
        run(main())


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda call: call.refuse("wrong"), (Kind.REFUSED, "wrong", 0.0)),
        (lambda call: call.fail("broke ö"), (Kind.FAILED, "broke ö", 0.0)),
        (lambda call: call.expire(), (Kind.EXPIRED, "the deadline passed", 0.0)),
        (lambda call: call.overload("full", 1.25), (Kind.OVERLOADED, "full", 1.25)),
        (lambda call: 1 / 0, (Kind.FAILED, "ZeroDivisionError: division by zero", 0.0)),
        (
            lambda call: call.answer([bytes(MAX_FRAME_BYTES)], TIMINGS),
            (Kind.FAILED, "the answer is too large", 0.0),
        ),
    ],
    ids=["refuse", "fail", "expire", "overload", "raise", "too large"],
)
def test_every_other_end(end, expected) -> None:
    class Ending(Doubler):
        def infer(self, call) -> None:
            end(call)
            call.fail("a second end")

    async def main() -> None:
        link = await linked(served.address)
        for _ in range(2):  # and the link lives on
            answer = await asked(link, x=np.zeros(2, np.float32))
            assert (answer.kind, answer.retry_after_s) == (expected[0], expected[2])
            assert answer.message.startswith(expected[1])
        link.close()

    with serving(Ending()) as served:
        run(main())


def test_timings_out_of_bounds_are_cut() -> None:
    class Late(Doubler):
        def answer(self, call) -> None:
            call.answer([], Timings(2**40, -3, 1.6, 0, 100_000))  # type: ignore[arg-type]

    async def main() -> None:
        link = await linked(served.address)
        assert (await asked(link, x=np.zeros(1))).timings == Timings(2**32 - 1, 0, 2, 0, 65535)

    with serving(Late()) as served:
        run(main())


def test_bodies_that_are_no_tensors_are_refused_and_harm_nobody() -> None:
    async def main() -> None:
        link = await linked(served.address)
        wrong = await answered(lambda take: link.infer([b"\xff" * 100], 0, take))
        assert wrong.kind == Kind.REFUSED
        large = await answered(lambda take: link.infer([bytes(MAX_FRAME_BYTES), b"."], 0, take))
        assert large.kind == Kind.REFUSED
        assert "4194305 bytes, and a link carries 4194304 at most" in large.message
        assert outputs(await asked(link, x=np.ones(1)))["x"] == [2.0]
        link.close()

    with serving() as served:
        run(main())


def test_the_deadline_arrives() -> None:
    async def main() -> None:
        link = await linked(served.address)
        asked_s = time.monotonic()
        link.infer(tensors.write({"x": np.zeros(1)}), 1500, print)
        link.infer(tensors.write({"x": np.zeros(1)}), 0, print)
        await until(lambda: len(served.handler.calls) == 2)
        timed, free = served.handler.calls
        assert 0 <= timed.received_s - asked_s < 1.0
        assert timed.deadline_s == pytest.approx(timed.received_s + 1.5)
        assert free.deadline_s == float("inf")
        link.close()
        await until(lambda: timed.is_cancelled and free.is_cancelled)

    with serving(Doubler()) as served:
        served.handler.is_holding = True
        run(main())


@pytest.mark.parametrize(("deadline_ms", "left_s"), [(-5, 0.001), (2**40, (2**32 - 1) / 1000)])
def test_a_deadline_out_of_bounds_is_the_nearest_one(deadline_ms: int, left_s: float) -> None:
    async def main() -> None:
        link = await linked(served.address)
        link.infer(tensors.write({"x": np.zeros(1)}), deadline_ms, print)
        await until(lambda: len(served.handler.calls) == 1)
        (call,) = served.handler.calls
        assert call.deadline_s - call.received_s == pytest.approx(left_s)
        link.close()

    with serving() as served:
        served.handler.is_holding = True
        run(main())


def test_what_cannot_be_sent_is_not_in_flight() -> None:
    async def main() -> None:
        link = await linked(served.address)
        for parts, deadline_ms in (([5], 0), ([b""], 1.5)):
            with pytest.raises((TypeError, struct.error)):
                link.infer(parts, deadline_ms, print)  # type: ignore[arg-type]
        assert link.in_flight == 0
        assert outputs(await asked(link, x=np.ones(1)))["x"] == [2.0]
        link.close()

    with serving() as served:
        run(main())


@KINDS
def test_pieces_come_in_order_and_before_the_end(kind: str) -> None:
    async def main() -> None:
        link = await linked(served.address, kind)
        pieces: dict[int, list] = {0: [], 1: []}
        ends = [
            answered(
                lambda take, i=i: link.generate(
                    b"say %d" % i, 0, lambda *piece: pieces[i].append(piece), take
                )
            )
            for i in range(2)
        ]
        await until(lambda: len(served.handler.generating) == 2)
        calls = served.handler.generating

        def speak() -> None:
            for token in range(100):
                for call in calls:
                    call.piece(call.request + b" %d" % token, token + 1)
            calls[0].end(b"stop", TIMINGS)
            calls[1].piece(b"x" * 100_000, 101)
            calls[1].fail("broke")

        served.do(speak)
        first, second = await asyncio.gather(*ends)
        assert (first.kind, bytes(body_of(first))) == (Kind.RESULT, b"stop")
        assert (second.kind, second.message) == (Kind.FAILED, "broke")
        assert pieces[0] == [(b"say 0 %d" % token, token + 1) for token in range(100)]
        assert pieces[1][:100] == [(b"say 1 %d" % token, token + 1) for token in range(100)]
        assert pieces[1][100:] == [(b"x" * 100_000, 101)]
        link.close()

    with serving() as served:
        run(main())


def test_a_cancelled_stream_is_told_and_its_pieces_are_dropped() -> None:
    async def main() -> None:
        link = await linked(served.address)
        found: list = []
        stream = link.generate(b"", 0, lambda *piece: found.append(piece), found.append)
        await until(lambda: bool(served.handler.generating))
        link.cancel(stream)
        link.cancel(stream)
        link.cancel(stream + 1)
        await until(lambda: bool(served.handler.cancelled))
        (call,) = served.handler.cancelled
        assert call.is_cancelled
        served.do(lambda: call.piece(b"late", 1))
        assert link.in_flight == 1
        served.do(call.expire)
        await until(lambda: link.in_flight == 0)
        assert found == []
        assert len(served.handler.cancelled) == 1
        link.close()

    with serving() as served:
        run(main())


def test_a_taker_that_raises_harms_only_itself(caplog) -> None:
    def taker(*_: object) -> None:
        raise RuntimeError("taker")

    async def main() -> None:
        link = await linked(served.address)
        link.infer(tensors.write({"x": np.zeros(1)}), 0, taker)
        stream = link.generate(b"", 0, taker, taker)
        await until(lambda: bool(served.handler.generating))
        served.do(lambda: served.handler.generating[0].piece(b"a", 1))
        await until(lambda: bool(served.handler.cancelled))  # whoever cannot take pieces wants no more
        assert served.handler.cancelled[0].stream == stream
        assert outputs(await asked(link, x=np.ones(1)))["x"] == [2.0]
        link.close()

    with serving() as served:
        run(main())
    assert "a taker of answers failed" in caplog.text


def test_a_handler_that_raises_harms_only_its_call(caplog) -> None:
    class Broken(Doubler):
        def flush(self) -> None:
            super().flush()
            raise RuntimeError("flush")

        def cancel(self, call) -> None:
            super().cancel(call)
            raise RuntimeError("cancel")

    async def main() -> None:
        link = await linked(served.address)
        link.cancel(link.generate(b"", 0, print, print))
        await until(lambda: bool(served.handler.cancelled))
        assert outputs(await asked(link, x=np.ones(1)))["x"] == [2.0]
        link.close()

    with serving(Broken()) as served:
        run(main())
    assert "the handler's flush failed" in caplog.text
    assert "the handler's cancel failed" in caplog.text


def test_answers_from_another_thread() -> None:
    class Elsewhere(Doubler):
        def flush(self) -> None:
            calls, self.calls = self.calls, []
            threading.Thread(target=self.work, args=(calls,)).start()

        def work(self, calls) -> None:
            for call in calls:
                served.server.call_soon(lambda call=call: self.answer(call))

    async def main() -> None:
        link = await linked(served.address)
        answers = await asyncio.gather(*(asked(link, x=np.full(1, index)) for index in range(100)))
        assert [outputs(answer)["x"][0] for answer in answers] == [2 * index for index in range(100)]
        link.close()

    with serving(Elsewhere()) as served:
        run(main())


@KINDS
def test_drain_says_so_ends_what_runs_and_begins_no_more(kind: str) -> None:
    async def main() -> None:
        lost = Lost()
        link = await linked(served.address, kind, on_lost=lost)
        held = asked(link, x=np.ones(1))
        late = asked(link, x=np.ones(1))
        await until(lambda: len(handler.calls) == 2)
        served.server.drain()
        await until(lambda: link.is_draining)
        assert not link.takes_requests
        assert (await asked(link, x=np.ones(1))).kind == Kind.GOAWAY  # not even sent
        with pytest.raises(Exception, match="cannot be reached"):
            await linked(served.address, kind)
        closing = asyncio.get_running_loop().run_in_executor(None, served.server.close, 5)
        served.do(lambda: [handler.answer(call) for call in handler.calls])
        assert outputs(await held)["x"] == [2.0]
        assert outputs(await late)["x"] == [2.0]
        await closing
        await lost.event.wait()
        assert lost.reasons == ["the other end closed it"]

    with serving(Doubler()) as served:
        handler = served.handler
        handler.is_holding = True
        run(main())


def test_a_request_that_crosses_the_goaway_was_not_begun() -> None:
    async def main() -> None:
        link = await linked(served.address)
        served.do(lambda: [session.drain("stops") for session in served.server._sessions])
        crossing = asked(link, x=np.ones(1))  # this loop has not read the GOAWAY yet
        slotted = in_slot(link, LARGE)
        assert (await crossing).kind == Kind.GOAWAY
        answer = await slotted
        assert answer.kind == Kind.GOAWAY
        assert num_free(link) == RING.slots - 1  # for another try, from its bytes
        answer.release()
        assert num_free(link) == RING.slots
        assert served.handler.calls == []
        link.close()

    with serving() as served:
        run(main())


def test_one_that_comes_while_the_replica_drains_is_told() -> None:
    async def main() -> None:
        served.do(lambda: setattr(served.server, "_is_draining", True))  # its listeners are still open
        link = await linked(served.address)
        await until(lambda: link.is_draining)
        link.close()

    with serving() as served:
        run(main())


def test_links_that_end_at_once_are_not_kept() -> None:
    async def main() -> None:
        for _ in range(30):
            link = await linked(served.address)
            link.close()
        await until(lambda: not served.server._sessions)
        await until(lambda: not served.server._greetings)

    with serving() as served:
        run(main())


def test_a_server_whose_loop_does_not_start_says_so(monkeypatch, tmp_path) -> None:
    def broken() -> None:
        raise RuntimeError("no loop")

    monkeypatch.setattr("uvloop.new_event_loop", broken)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    server = LinkServer(Doubler(), KEY, folder=tmp_path / "s", host="127.0.0.1", max_frame_bytes=100)
    with pytest.raises(ServiceError, match="could not start its loop"):
        server.start()
    assert list((tmp_path / "s").iterdir()) == []
    server.close(0)


def test_work_of_before_the_start_is_done_and_of_after_the_end_is_not() -> None:
    done: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        server = LinkServer(Doubler(), KEY, folder=Path(folder), host="127.0.0.1", max_frame_bytes=100)
        server.call_soon(lambda: done.append("before"))
        server.start()
        server.close(0)
        server.call_soon(lambda: done.append("after"))
        server.drain()
        server.close(0)
    assert done == ["before"]


def test_close_does_not_wait_for_ever() -> None:
    async def main() -> None:
        link = await linked(served.address)
        held = asked(link, x=np.ones(1))
        await until(lambda: len(served.handler.calls) == 1)
        await asyncio.get_running_loop().run_in_executor(None, served.server.close, 0.05)
        assert (await held).kind == Kind.LOST
        assert served.handler.cancelled[0].is_cancelled

    with serving(Doubler()) as served:
        served.handler.is_holding = True
        run(main())


def test_a_link_that_is_closed_loses_what_is_in_flight() -> None:
    async def main() -> None:
        lost = Lost()
        link = await linked(served.address, on_lost=lost)
        order: list[str] = []
        link.infer(tensors.write({"x": np.ones(1)}), 0, lambda answer: order.append(answer.message))
        link.close()
        await lost.event.wait()
        assert lost.reasons == ["this gateway closed it"]
        assert order == ["the link to the replica was lost: this gateway closed it"]
        assert (await asked(link, x=np.ones(1))).kind == Kind.GOAWAY
        link.cancel(1)
        link.close()

    with serving() as served:
        run(main())


def test_a_silent_replica_is_asked_and_then_lost() -> None:
    async def main() -> None:
        lost = Lost()
        link = await linked(served.address, ping_s=0.02, silence_s=0.1, on_lost=lost)
        await asyncio.sleep(0.3)
        assert link.is_open  # it answers pings
        held = asked(link, x=np.ones(1))
        release = threading.Event()
        served.server.call_soon(lambda: release.wait(5))
        try:
            assert (await held).kind == Kind.LOST
        finally:
            release.set()
        assert "nothing came from the replica for 0.1 s" in lost.reasons[0]

    with serving(Doubler()) as served:
        served.handler.is_holding = True
        run(main())


def test_a_replica_that_only_speaks_hears_of_the_gateway_all_the_same(monkeypatch) -> None:
    """One long text, and nothing else: no pause in it in which the gateway would ask."""
    monkeypatch.setattr("eagleray.serving.link.server._SILENCE_S", 0.5)
    monkeypatch.setattr("eagleray.serving.link.server._SWEEP_S", 0.05)

    async def main() -> None:
        link = await linked(served.address, ping_s=0.1)
        pieces = []
        end = answered(lambda take: link.generate(b"", 0, lambda *piece: pieces.append(piece), take))
        await until(lambda: len(served.handler.generating) == 1)
        [call] = served.handler.generating
        until_s = time.monotonic() + 1.5
        while time.monotonic() < until_s and link.is_open:
            served.server.call_soon(lambda: call.piece(b"a", 1))
            await asyncio.sleep(0.02)
        assert link.is_open
        served.server.call_soon(lambda: call.end(b"", TIMINGS))
        assert (await end).kind == Kind.RESULT
        assert len(pieces) > 10
        link.close()

    with serving() as served:
        run(main())


def test_a_gateway_that_was_held_up_itself_reads_first() -> None:
    async def main() -> None:
        link = await linked(served.address, ping_s=0.02, silence_s=0.5)  # a busy machine is slow, too
        for _ in range(2):
            answer = asked(link, x=np.ones(1))
            await asyncio.sleep(0.01)
            time.sleep(0.7)
            assert (await answer).kind == Kind.RESULT
            await asyncio.sleep(0.03)
        assert link.is_open
        link.close()

    with serving() as served:
        run(main())


def test_nothing_is_left_open() -> None:
    async def main() -> None:
        gc.collect()  # of the tests before
        for kind in ("unix", "tcp", "unix"):
            link = await linked(served.address, kind)
            slot = link.take_slot()
            held = asked(link, x=LARGE)
            if slot is not None:
                slot.view[:4] = b"data"
                assert len(rings()) == 4  # on each side a mapping, and its own copy of the descriptor
            assert (await held).kind == Kind.RESULT
            link.close()
            del link, slot, held
            await until(lambda: not served.server._sessions)
            assert rings() == []

    with serving() as served:
        run(main())


def test_a_slot_that_is_held_keeps_only_its_memory() -> None:
    async def main() -> None:
        gc.collect()  # of the tests before
        link = await linked(served.address, ring=RingOptions(slots=1, slot_bytes=4096))
        slot = slot_of(link)
        link.close()
        await until(lambda: not served.server._sessions)
        slot.view[:4] = b"data"
        slot.release()
        assert rings() != []
        del slot, link
        await until(lambda: rings() == [])

    with serving() as served:
        run(main())


def test_an_end_looks_on_while_it_waits_for_the_other_and_nothing_is_worked_on(monkeypatch) -> None:
    class Noted:
        def __init__(self, _loop, is_expected) -> None:
            self.is_expected, self.said = is_expected, []
            made.append(self)

        def expect(self) -> None:
            self.said.append("expect")

        def came(self) -> None:
            self.said.append("came")

    made: list[Noted] = []
    for module in (client, session):
        monkeypatch.setattr(module, "Awake", Noted)

    async def main() -> None:
        with serving() as replica:
            replica.handler.is_holding = True
            links = [await linked(replica.address, ring=None) for _ in range(2)]
            await until(lambda: len(made) == 4)  # the second session's too, made in the replica's own thread
            [asking, other] = [awake for awake in made if awake.is_expected() == {}]
            [answering, third] = [awake for awake in made if awake is not asking and awake is not other]
            assert answering.is_expected()
            answers = [asked(link, x=np.ones(2, np.float32)) for link in links]
            await until(lambda: len(replica.handler.calls) == 2)
            assert asking.said == ["expect"]
            assert asking.is_expected()
            assert not answering.is_expected()
            assert not third.is_expected()
            for number in range(2):
                replica.do(lambda: replica.handler.answer(replica.handler.calls.pop(0)))
                await answers[number]
                said = [awake.said for awake in (answering, third)]
                assert sorted(said) == [["came"], ["came", "expect"] if number else ["came"]]
            assert asking.said == ["expect", "came"]
            assert not asking.is_expected()
            for link in links:
                link.close()

    run(main())
