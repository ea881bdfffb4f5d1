from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import socket
import struct
from pathlib import Path

import pytest

from eagleray.errors import ServiceError
from eagleray.serving.link import handshake, sockets
from eagleray.serving.link.client import connect
from eagleray.serving.link.frames import HEADER, Kind, header
from eagleray.serving.link.handshake import LinkRefused
from eagleray.serving.link.ring import Ring, RingOptions
from eagleray.serving.link.server import LinkServer
from support.links import (
    KEY,
    MAX_FRAME_BYTES,
    RING,
    Doubler,
    Lost,
    asked,
    linked,
    rings,
    run,
    serving,
    until,
)

KINDS = pytest.mark.parametrize("kind", ["unix", "tcp"])
_WISHES = struct.Struct("<32sIII")


def dialled(address: str) -> socket.socket:
    """A plain socket to the replica."""
    if address.startswith("/"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(address)
    else:
        host, port = address.split(":")
        sock = socket.create_connection((host, int(port)))
    sock.settimeout(5)
    return sock


def received(sock: socket.socket) -> tuple[int, bytes]:
    """Kind and body of the next frame."""
    size, _, kind, *_ = HEADER.unpack(sock.recv(16, socket.MSG_WAITALL))
    return kind, sock.recv(size, socket.MSG_WAITALL)


def proof(challenge, key=KEY, slots: int = 0, slot_bytes: int = 0, role: bytes = b"gateway") -> bytes:
    wishes = _WISHES.pack(bytes(32), MAX_FRAME_BYTES, slots, slot_bytes)
    body = wishes + handshake._mac(key, role, challenge + wishes)
    return header(Kind.PROOF, 0, len(body)) + body


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(100) == b""
    except ConnectionResetError:
        return True


def still_answers(served, kind: str = "unix") -> None:
    async def main() -> None:
        link = await linked(served.address, kind)
        assert (await asked(link)).kind == Kind.RESULT
        link.close()

    run(main())


@KINDS
@pytest.mark.parametrize(
    "said",
    [
        lambda challenge: proof(challenge, key=b"o" * 32),
        lambda challenge: proof(challenge, role=b"replica"),
        lambda challenge: proof(b"\1" + bytes(32) + challenge[33:]),
        lambda challenge: header(Kind.INFER, 1, 10) + bytes(10),
        lambda challenge: header(Kind.PING, 0, 0),
        lambda challenge: header(Kind.PROOF, 0, 2**32 - 1) + bytes(100),
        lambda challenge: header(Kind.PROOF, 0, 10) + bytes(10),
        lambda challenge: b"GET / HTTP/1.1\r\nhost: example\r\n\r\n",
        lambda challenge: proof(challenge, slots=4, slot_bytes=4096),
        lambda challenge: proof(challenge)[:-1] + bytes(1),
    ],
    ids=[
        "another key", "a replica's", "another challenge's", "a request", "a ping", "4 GB", "too short",
        "HTTP", "a ring without memory", "a wrong byte",
    ],
)  # fmt: skip
def test_a_stranger_is_closed_and_nobody_else_notices(kind: str, said, caplog) -> None:
    with serving() as served, dialled(served.address[kind]) as sock:
        found, challenge = received(sock)
        assert found == Kind.CHALLENGE
        sock.sendall(said(challenge))
        assert is_closed(sock)
        still_answers(served)
        assert "1 links were refused, the last one" in caplog.text
        assert served.handler.calls == []


@KINDS
def test_a_proof_is_good_for_one_challenge_only(kind: str) -> None:
    with serving() as served:
        with dialled(served.address[kind]) as first:
            _, challenge = received(first)
            recorded = proof(challenge)
            first.sendall(recorded)
            assert received(first)[0] == Kind.WELCOME
        with dialled(served.address[kind]) as second:
            received(second)
            second.sendall(recorded)
            assert is_closed(second)


@KINDS
def test_one_that_says_nothing_is_closed_in_time(kind: str, monkeypatch) -> None:
    monkeypatch.setattr("eagleray.serving.link.server._HANDSHAKE_S", 0.05)
    with serving() as served, dialled(served.address[kind]) as sock:
        received(sock)
        sock.sendall(proof(b"")[:20])
        assert is_closed(sock)
        still_answers(served)


def test_a_crowd_that_says_nothing_keeps_nobody_out_for_long(monkeypatch, caplog) -> None:
    monkeypatch.setattr("eagleray.serving.link.server._MAX_GREETINGS", 4)
    monkeypatch.setattr("eagleray.serving.link.server._HANDSHAKE_S", 0.05)
    with serving() as served:
        crowd = [dialled(served.address["tcp"]) for _ in range(12)]
        still_answers(served)  # by the unix socket at once
        assert all(is_closed(sock) or sock.recv(1000) == b"" for sock in crowd)
        for sock in crowd:
            sock.close()
        still_answers(served, "tcp")
    assert caplog.text.count("refused") == 1


def test_on_tcp_every_frame_is_sealed() -> None:
    with serving() as served, dialled(served.address["tcp"]) as sock:
        _, challenge = received(sock)
        sock.sendall(proof(challenge))
        received(sock)
        sock.sendall(header(Kind.PING, 0, 0) + header(Kind.PING, 0, 16) + bytes(16))
        assert is_closed(sock)
        still_answers(served)


def sealed_memory(num_bytes: int, seals: int) -> int:
    fd = os.memfd_create("eagleray-link", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, num_bytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


ALL_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@pytest.mark.parametrize(
    ("make", "slots", "slot_bytes"),
    [
        (lambda: sealed_memory(8192, 0), 2, 4096),
        (lambda: sealed_memory(8192, fcntl.F_SEAL_GROW), 2, 4096),
        (lambda: sealed_memory(4096, ALL_SEALS), 2, 4096),
        (lambda: os.open("/dev/null", os.O_RDONLY), 2, 4096),
        (lambda: sealed_memory(8192, ALL_SEALS), 2**32 - 1, 2**32 - 4096),
        (lambda: sealed_memory(8192, ALL_SEALS), 4, 2048),
        (lambda: sealed_memory(8192, ALL_SEALS), 0, 4096),
    ],
    ids=["not sealed", "may shrink", "too small", "no memory", "huge", "half pages", "not announced"],
)
def test_a_ring_that_is_none_is_refused_and_closed(make, slots: int, slot_bytes: int) -> None:
    gc.collect()
    with serving() as served, dialled(served.address["unix"]) as sock:
        _, challenge = received(sock)
        fd = make()
        try:
            socket.send_fds(sock, [proof(challenge, slots=slots, slot_bytes=slot_bytes)], [fd, fd, fd])
        finally:
            os.close(fd)
        if slots:
            assert is_closed(sock)
        else:
            assert received(sock)[0] == Kind.WELCOME
        run(until(lambda: rings() == []))
        still_answers(served)


def test_the_gateway_refuses_who_has_not_the_key() -> None:
    async def main() -> None:
        before = len(os.listdir("/proc/self/fd"))
        for kind in ("unix", "tcp"):
            with pytest.raises(LinkRefused, match="another key, perhaps"):
                await connect(
                    served.address[kind],
                    b"o" * 32,
                    instance="",
                    max_frame_bytes=100,
                    ring=RING,
                    on_lost=Lost(),
                )
            with pytest.raises(LinkRefused, match="another one is there now"):
                await linked(served.address, kind, instance="f" * 32)
        await asyncio.sleep(0.02)
        assert len(os.listdir("/proc/self/fd")) == before

    with serving() as served:
        run(main())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n", "before the handshake was over"),
        (lambda _: header(Kind.CHALLENGE, 0, 33) + b"\2" + bytes(32), "speaks protocol 2"),
        (lambda _: header(Kind.CHALLENGE, 0, 2**32 - 1), "CHALLENGE has 4294967295 bytes"),
        (lambda _: header(Kind.CHALLENGE, 0, 33) + b"\1" + bytes(3), "closed the connection"),
        (lambda _: header(Kind.RESULT, 0, 3) + b"abc", "kind 7 came before"),
        (lambda _: b"", "closed the connection"),
    ],
)
def test_a_stranger_in_the_replicas_place(tmp_path: Path, said, message: str) -> None:
    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said(reader))
        writer.close()

    async def main() -> None:
        async with await asyncio.start_unix_server(stranger, tmp_path / "s"):
            with pytest.raises(LinkRefused, match=message):
                await connect(
                    str(tmp_path / "s"), KEY, instance="", max_frame_bytes=100, ring=None, on_lost=Lost()
                )

    run(main())


@pytest.mark.parametrize("is_reflected", [True, False])
def test_a_proof_sent_back_proves_nothing(tmp_path: Path, is_reflected: bool) -> None:
    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(header(Kind.CHALLENGE, 0, 33) + b"\1" + bytes(32))
        sent = await reader.readexactly(16 + _WISHES.size + 32)
        body = struct.pack("<I", 100) + (sent[-32:] if is_reflected else bytes(32))
        writer.write(header(Kind.WELCOME, 0, len(body)) + body)
        await reader.read()
        writer.close()

    async def main() -> None:
        async with await asyncio.start_unix_server(stranger, tmp_path / "s"):
            with pytest.raises(LinkRefused, match="it has not the cluster's key"):
                await connect(
                    str(tmp_path / "s"), KEY, instance="", max_frame_bytes=100, ring=RING, on_lost=Lost()
                )
        assert rings() == []

    gc.collect()
    run(main())


def test_nobody_answers(tmp_path: Path) -> None:
    async def main() -> None:
        options = {"instance": "", "max_frame_bytes": 100, "ring": RING, "on_lost": Lost()}
        for address in (str(tmp_path / "none"), "127.0.0.1:1", "nonsense", "127.0.0.1:x", "127.0.0.1:99999"):
            with pytest.raises(LinkRefused, match="cannot be reached"):
                await connect(address, KEY, **options)
        with sockets.listen_unix(tmp_path / "mute.sock"), pytest.raises(LinkRefused, match=r"within 0\.05 s"):
            await connect(str(tmp_path / "mute.sock"), KEY, **options, timeout_s=0.05)

    run(main())


def test_the_smaller_frame_is_agreed_on() -> None:
    async def main() -> None:
        link = await linked(served.address, max_frame_bytes=1 << 30)
        assert link._max_frame_bytes == MAX_FRAME_BYTES
        small = await linked(served.address, max_frame_bytes=100)
        assert small._max_frame_bytes == 100
        await until(lambda: {100, MAX_FRAME_BYTES} == {s._max_frame_bytes for s in served.server._sessions})

    with serving() as served:
        run(main())


@pytest.mark.parametrize("key", [b"", b"short", bytes(33)])
def test_a_key_has_32_bytes(key: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give 32"):
        LinkServer(Doubler(), key, folder=tmp_path, host="127.0.0.1", max_frame_bytes=100)


class TestSockets:
    def test_the_socket_is_its_users_alone_and_goes_at_the_end(self) -> None:
        with serving() as served:
            path = Path(served.address["unix"])
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
        assert not path.exists()

    def test_an_open_folder_is_refused(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)
        link = tmp_path / "link"
        (tmp_path / "private").mkdir(mode=0o700)
        link.symlink_to(tmp_path / "private")
        for folder in (tmp_path, link):
            server = LinkServer(Doubler(), KEY, folder=folder, host="127.0.0.1", max_frame_bytes=100)
            with pytest.raises(ServiceError, match="only their user can enter"):
                server.start()
            server.close(0)

    def test_a_path_that_is_too_long(self, tmp_path: Path) -> None:
        folder = tmp_path / ("long" * 25)
        server = LinkServer(Doubler(), KEY, folder=folder, host="127.0.0.1", max_frame_bytes=100)
        with pytest.raises(ServiceError, match="give a shorter folder"):
            server.start()

    def test_a_host_that_is_none_of_ours(self, tmp_path: Path) -> None:
        folder = tmp_path / "s"
        server = LinkServer(Doubler(), KEY, folder=folder, host="192.0.2.1", max_frame_bytes=100)
        with pytest.raises(ServiceError, match=r"cannot listen at '192\.0\.2\.1'"):
            server.start()
        assert list(folder.iterdir()) == []

    def test_stale_sockets_are_removed_and_others_stay(self) -> None:
        with serving() as served:
            folder = Path(served.address["unix"]).parent
            stale = folder / "stale.sock"
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.bind(str(stale))
            old, new = folder / "old.new", folder / "bound.new"
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as killed:
                killed.bind(str(old))
            os.utime(old, (0, 0))
            (folder / "note.txt").touch()
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as starting:
                starting.bind(str(new))
                sock.close()
                other = LinkServer(Doubler(), KEY, folder=folder, host="127.0.0.1", max_frame_bytes=100)
                other.start()
                assert not stale.exists()
                assert not old.exists()
                assert new.exists()
                assert (folder / "note.txt").exists()
                assert Path(served.address["unix"]).exists()
                other.close(0)
            still_answers(served)


def test_ring_options_are_checked() -> None:
    for slots, slot_bytes in ((0, 4096), (1, 0), (1, 100), (-1, 4096), (2**20, 2**20)):
        with pytest.raises(ValueError, match="slots of"):
            RingOptions(slots, slot_bytes)
    ring = Ring(RingOptions(2, 4096))
    slots = [slot for slot in (ring.take(), ring.take()) if slot is not None]
    assert ring.take() is None
    assert sorted(slot.index for slot in slots) == [0, 1]
    slots[0].view[:1] = b"a"
    assert bytes(slots[1].view[:1]) == b"\0"
    ring.close()
    slots[0].release()
    assert ring.take() is None
