"""Ends that have the key and then send what cannot be right, die, or do not read."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from eagleray.serving.link import handshake, tensors
from eagleray.serving.link.frames import HEADER, PIECE, PLACE, SLOT, TIMINGS, Kind, header
from eagleray.serving.link.ring import Ring, RingOptions
from eagleray.serving.link.sockets import ReplicaAddress
from support.links import (
    KEY,
    MAX_FRAME_BYTES,
    Doubler,
    Lost,
    answered,
    asked,
    linked,
    rings,
    run,
    serving,
    slot_of,
    until,
)

_WISHES = struct.Struct("<32sIII")
SLOTS, SLOT_BYTES = 2, 4096


def dialled(served, *, has_ring: bool = True) -> socket.socket:
    """A plain socket whose handshake is over."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(5)
    sock.connect(served.address["unix"])
    size = HEADER.unpack(sock.recv(16, socket.MSG_WAITALL))[0]
    challenge = sock.recv(size, socket.MSG_WAITALL)
    ring = Ring(RingOptions(SLOTS, SLOT_BYTES))
    wishes = _WISHES.pack(secrets.token_bytes(32), MAX_FRAME_BYTES, SLOTS * has_ring, SLOT_BYTES)
    body = wishes + handshake._mac(KEY, b"gateway", challenge + wishes)
    socket.send_fds(sock, [header(Kind.PROOF, 0, len(body)) + body], [ring.fd] * has_ring)
    sock.recv(16 + 36, socket.MSG_WAITALL)
    ring.close()
    return sock


def is_closed(sock: socket.socket) -> bool:
    try:
        while sock.recv(100_000):
            pass
    except ConnectionResetError:
        pass
    return True


def frame(kind: Kind, stream: int, body: bytes = b"", flags: int = 0) -> bytes:
    return header(kind, stream, len(body), flags=flags) + body


def still_answers(served) -> None:
    async def main() -> None:
        link = await linked(served.address)
        assert (await asked(link, x=np.ones(2))).kind == Kind.RESULT
        link.close()

    run(main())


HEAD = tensors.head_of([tensors.TensorSpec("x", "UINT8", (16,), 16)])


def slotted(stream: int, slot: int, offset: int, length: int, head: bytes = HEAD) -> bytes:
    return frame(Kind.INFER, stream, PLACE.pack(slot, offset, length) + head, SLOT)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (frame(Kind.RESULT, 1, bytes(24)), "a RESULT from a gateway"),
        (frame(Kind.CHALLENGE, 0), "a CHALLENGE from a gateway"),
        (frame(Kind.INFER, 0, b"x"), "stream 0 was begun"),
        (frame(Kind.INFER, 7, b"x") * 2, "stream 7 was begun"),
        (frame(Kind.INFER, 7, b"x") + frame(Kind.GENERATE, 7), "stream 7 was begun"),
        (header(Kind.INFER, 1, 2**32 - 1), "4294967295 bytes"),
        (header(Kind.INFER, 1, MAX_FRAME_BYTES + 1), "4194305 bytes"),
        (HEADER.pack(0, 1, 77, 0, 0, 0), "kind 77"),
        (slotted(1, SLOTS, 0, 16), "slot 2: the ring has 2 slots"),
        (slotted(1, 2**32 - 1, 0, 16), "slot 4294967295"),
        (slotted(1, 0, SLOT_BYTES - 15, 16), "bytes 4081 to 4097"),
        (slotted(1, 0, 2**32 - 1, 2**32 - 1), "bytes 4294967295 to 8589934590"),
        (slotted(1, 0, 0, 16) + slotted(2, 0, 64, 16), "slot 0 of the ring was sent again"),
        (frame(Kind.INFER, 1, b"short", SLOT), "there is no ring"),
    ],
)
def test_a_gateway_that_breaks_the_rules_is_closed_alone(said: bytes, reason: str, caplog) -> None:
    caplog.set_level("INFO")
    gc.collect()  # of the tests before
    with serving() as served:
        served.handler.is_holding = True
        with dialled(served) as sock:
            sock.sendall(said)
            assert is_closed(sock)
        assert reason in caplog.text
        served.handler.is_holding = False
        served.handler.calls.clear()
        still_answers(served)
        run(until(lambda: rings() == []))


def test_a_slot_without_a_ring(caplog) -> None:
    caplog.set_level("INFO")
    with serving() as served:
        with dialled(served, has_ring=False) as sock:
            sock.sendall(slotted(1, 0, 0, 16))
            assert is_closed(sock)
        assert "there is no ring" in caplog.text


def test_a_head_that_lies_about_its_slot_is_refused() -> None:
    with serving() as served, dialled(served) as sock:
        for stream, said in enumerate(
            [slotted(1, 0, 0, 15), slotted(1, 0, 0, 16, b""), slotted(1, 0, 0, 16)], 1
        ):
            sock.sendall(
                said.replace(
                    struct.pack("<II", len(said) - 16, 1), struct.pack("<II", len(said) - 16, stream)
                )
            )
            size, found, kind, *_ = HEADER.unpack(sock.recv(16, socket.MSG_WAITALL))
            assert (found, kind) == (stream, Kind.RESULT if stream == 3 else Kind.REFUSED)
            sock.recv(size, socket.MSG_WAITALL)


def test_half_a_frame_and_then_nothing(monkeypatch) -> None:
    monkeypatch.setattr("eagleray.serving.link.server._SILENCE_S", 0.1)
    monkeypatch.setattr("eagleray.serving.link.server._SWEEP_S", 0.02)
    with serving() as served, dialled(served) as sock:
        sock.sendall(header(Kind.INFER, 1, 100_000) + bytes(50_000))
        still_answers(served)
        assert is_closed(sock)


def test_a_gateway_that_asks_and_does_not_read_is_given_up(monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("eagleray.serving.link.session._HELD_BYTES", 0)
    with serving(max_frame_bytes=500_000) as served:
        with dialled(served) as sock:
            body = b"".join(tensors.write({"x": np.zeros(400_000, np.uint8)}))
            sock.settimeout(0.2)
            stream = 0
            try:
                for stream in range(1, 1000):
                    sock.sendall(frame(Kind.INFER, stream, body))
            except OSError:
                pass
            assert stream < 100
        assert "bytes of answers unread" in caplog.text
        still_answers(served)


def test_a_gateway_that_sends_more_than_can_be_held_is_told(monkeypatch) -> None:
    monkeypatch.setattr("eagleray.serving.link.session._HELD_BYTES", 0)
    monkeypatch.setattr("eagleray.serving.link.session.MAX_IN_FLIGHT", 12)

    async def main() -> None:
        link = await linked(served.address)
        large = [asked(link, x=np.zeros(90_000, np.uint8)) for _ in range(5)]
        small = [asked(link, x=np.zeros(9, np.uint8)) for _ in range(10)]
        ends = [await end for end in (large[4], small[8], small[9])]
        for answer in ends:
            assert answer.kind == Kind.OVERLOADED
            assert "the replica holds" in answer.message
            assert answer.retry_after_s == 0.1
        served.do(lambda: [served.handler.answer(call) for call in served.handler.calls])
        kinds = [answer.kind for answer in await asyncio.gather(*large, *small)]
        assert kinds.count(Kind.RESULT) == 12
        link.close()

    with serving(max_frame_bytes=100_000) as served:
        served.handler.is_holding = True
        run(main())


@asynccontextmanager
async def replica(path: Path, behave: Callable) -> AsyncIterator[ReplicaAddress]:
    """A replica that shakes hands and then does as `behave(frames, write)` says."""

    async def serve(sock: socket.socket) -> None:
        agreed = await handshake.serve(sock, KEY, instance="broken", max_frame_bytes=MAX_FRAME_BYTES)
        reader, writer = await asyncio.open_unix_connection(sock=sock)

        async def frames():
            while True:
                size, stream, kind, *_ = HEADER.unpack(await reader.readexactly(16))
                yield Kind(kind), stream, await reader.readexactly(size)

        try:
            await behave(frames(), writer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            if agreed.ring is not None:
                agreed.ring.close()

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    listener.setblocking(False)

    async def accept() -> None:
        sock, _ = await asyncio.get_running_loop().sock_accept(listener)
        await serve(sock)

    task = asyncio.create_task(accept())
    try:
        yield {"unix": str(path), "tcp": "", "instance": "broken", "node": "n", "protocol": 1}
    finally:
        task.cancel()
        listener.close()
        await asyncio.gather(task, return_exceptions=True)


def result(stream: int, body: bytes = b"", flags: int = 0) -> bytes:
    return frame(Kind.RESULT, stream, TIMINGS.pack(0, 0, 0, 0, 1, 0, 0) + body, flags)


def piece(stream: int, text: bytes, size: int | None = None) -> bytes:
    return PIECE.pack(stream, 1, len(text) if size is None else size) + text


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (frame(Kind.RESULT, 1, b"short"), "has no timings"),
        (result(99), "stream 99, which nobody asked for"),
        (frame(Kind.FAILED, 99), "stream 99, which nobody asked for"),
        (frame(Kind.OVERLOADED, 1, b"abc"), "OVERLOADED without a time"),
        (frame(Kind.INFER, 1), "a INFER from a replica"),
        (header(Kind.RESULT, 1, 2**32 - 1), "4294967295 bytes"),
        (b"garbage" * 10, "bytes, and the most|which there is not"),
        (result(1, PLACE.pack(0, 0, 16), SLOT), "not in one"),
        (result(2, PLACE.pack(1, 0, 16), SLOT), "not its own"),
        (result(2, PLACE.pack(0, 1 << 20, 1), SLOT), "not its own"),
        (result(2, b"short", SLOT), "not in one"),
        (frame(Kind.PIECES, 0, piece(1, b"a")), "a piece for stream 1"),
        (frame(Kind.PIECES, 0, piece(3, b"a") + b"half"), "half a piece"),
        (frame(Kind.PIECES, 0, piece(3, b"a", 2**32 - 1)), "a piece of 4294967295 bytes"),
        (result(1)[:30], "closed it"),
        (b"", "closed it"),
    ],
)
def test_a_replica_that_breaks_the_rules_is_lost_and_all_are_told(
    tmp_path: Path, said: bytes, reason: str
) -> None:
    async def behave(frames, writer) -> None:
        for _ in range(3):
            await anext(frames)
        writer.write(said)

    async def main() -> None:
        lost = Lost()
        async with replica(tmp_path / "s", behave) as address:
            link = await linked(address, on_lost=lost)
            first = asked(link, x=np.ones(1))
            slot = slot_of(link)
            second = answered(lambda take: link.infer_in_slot(slot, 0, 16, HEAD, 0, take))
            pieces: list = []
            third = answered(lambda take: link.generate(b"", 0, lambda *piece: pieces.append(piece), take))
            for answer in await asyncio.gather(first, second, third):
                assert answer.kind == Kind.LOST
                assert lost.reasons[0] in answer.message
            assert len(lost.reasons) == 1
            assert reason in lost.reasons[0] or any(part in lost.reasons[0] for part in reason.split("|"))
            assert not link.is_open
            assert link.in_flight == 0
            assert link.take_slot() is None

    run(main())


def test_a_replica_that_never_answers_is_found(tmp_path: Path) -> None:
    async def behave(frames, writer) -> None:
        async for kind, stream, _ in frames:
            if kind == Kind.INFER:
                writer.write(result(stream, b"x" * 50)[:40])  # half of it

    async def main() -> None:
        lost = Lost()
        async with replica(tmp_path / "s", behave) as address:
            link = await linked(address, on_lost=lost, ping_s=0.02, silence_s=0.1)
            assert (await asked(link, x=np.ones(1))).kind == Kind.LOST
            assert "nothing came from the replica" in lost.reasons[0]

    run(main())


@pytest.mark.parametrize("kind", [Kind.PING, Kind.PONG, Kind.GOAWAY])
def test_what_a_replica_may_say_unasked(tmp_path: Path, kind: Kind) -> None:
    heard: list[Kind] = []

    async def behave(frames, writer) -> None:
        writer.write(frame(kind, 0))
        async for found, stream, _ in frames:
            heard.append(found)
            if found == Kind.INFER:
                writer.write(result(stream))

    async def main() -> None:
        async with replica(tmp_path / "s", behave) as address:
            link = await linked(address)
            await until(lambda: kind != Kind.PING or Kind.PONG in heard)
            await until(lambda: link.is_draining == (kind == Kind.GOAWAY))
            answer = await asked(link, x=np.ones(1))
            assert answer.kind == (Kind.GOAWAY if kind == Kind.GOAWAY else Kind.RESULT)
            link.close()

    run(main())


def test_a_replica_that_does_not_read_is_overloaded_and_not_remembered_without_bound(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("eagleray.serving.link.client._WAITING_BYTES", 0)

    async def behave(frames, writer) -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        async with replica(tmp_path / "s", behave) as address:
            link = await linked(address, max_frame_bytes=1 << 20)
            body = [b"x" * (1 << 20)]
            ends: list = []
            for _ in range(20):
                link.infer(body, 0, ends.append)
                await asyncio.sleep(0)
            assert [answer.kind for answer in ends] == [Kind.OVERLOADED] * len(ends)
            assert len(ends) >= 12
            assert "wait for a replica" in ends[0].message
            assert ends[0].retry_after_s > 0
            link.close()

    run(main())


def test_more_in_flight_than_anybody_wants(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("eagleray.serving.link.client.MAX_IN_FLIGHT", 5)

    async def main() -> None:
        link = await linked(served.address)
        ends = [asked(link, x=np.ones(1)) for _ in range(6)]
        assert (await ends[5]).kind == Kind.OVERLOADED
        link.close()

    with serving() as served:
        served.handler.is_holding = True
        run(main())


def test_stream_numbers_begin_again_and_step_over_those_in_use() -> None:
    async def main() -> None:
        link = await linked(served.address)
        held = link.infer(tensors.write({"x": np.ones(1)}), 0, print)
        link._stream = 2**32 - 2
        streams = [link.infer(tensors.write({"x": np.ones(1)}), 0, print) for _ in range(3)]
        assert held == 1
        assert streams == [2**32 - 1, 2, 3]
        link.close()

    with serving() as served:
        served.handler.is_holding = True
        run(main())


def test_garbage_after_the_handshake_ends_only_itself() -> None:
    gc.collect()  # of the tests before
    random = np.random.default_rng(0)
    with serving() as served:
        for turn in range(60):
            with dialled(served, has_ring=bool(turn % 2)) as sock:
                data = bytearray(random.bytes(200))
                if turn % 3:  # as a frame, so that it gets further
                    data[:4] = struct.pack("<I", 100)
                    data[8] = 4 + turn % 5
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                assert is_closed(sock)
        still_answers(served)
        run(until(lambda: not served.server._sessions and rings() == []))


def test_the_frames_of_a_dead_loop_are_dropped() -> None:
    """uvloop raises where a closed transport is written to."""

    async def main() -> None:
        link = await linked(served.address)
        link.infer(tensors.write({"x": np.ones(1)}), 0, print)
        link.give_up("here")
        link.flush()
        link.send(Kind.PING, 0)
        link.flush()
        await until(lambda: link.in_flight == 0)

    with serving(Doubler()) as served:
        run(main())
        assert os.path.exists(served.address["unix"])
