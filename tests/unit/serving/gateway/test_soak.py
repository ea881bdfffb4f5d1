"""Large bodies, many of them, through a gateway and a replica that is a process: nothing of them is left."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eagleray.protocol import binary
from eagleray.protocol.infer import InferRequest
from eagleray.serving.gateway.link_transport import RING
from eagleray.serving.gateway.lookup_ray260 import Running
from eagleray.serving.link.sockets import ReplicaAddress
from support import replica_main
from support.links import descriptors, rings
from support.serving import Pretend, PretendTransport, pretend, serving, target
from support.talking import Answer, connect, lines_of, post, read, slots, until

TONES, PATH = target("tones"), "/v2/models/tones/infer"
SAMPLE_BYTES = 4 * 800
SIZES_MIB = (1, 2, 3, 5, 10)
"""The first three fit into a slot of the ring."""
GROWTH_MIB = 64
"""What a process's memory may have grown by: of 420 MiB that pass, and what other tests left in pieces."""


class Replica:
    """The process."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, replica_main.__file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        assert self.process.stdout is not None
        self.address: ReplicaAddress = json.loads(self.process.stdout.readline())

    def close(self, timeout_s: float = 0) -> None:
        """End it, however it is."""
        self.process.kill()
        self.process.communicate(timeout=10)

    def memory_mib(self) -> float:
        """Resident, and its own."""
        return memory_mib(self.process.pid)

    def num_open(self) -> int:
        """Descriptors, and mapped rings."""
        place = Path(f"/proc/{self.process.pid}")
        maps = (place / "maps").read_text(encoding="utf-8")
        return len(os.listdir(place / "fd")) + maps.count("eagleray-link")


def kinds_open() -> Counter[str]:
    """What this process has open, and its mapped rings, by their kinds; pipes are the test's."""
    found = Counter("ring" if "eagleray-link" in name else name.partition(":")[0] for name in descriptors())
    del found["pipe"]
    return found


def memory_mib(process: int | str = "self") -> float:
    """Resident, without what is shared: the ring's pages are there from their first use on."""
    pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()
    return (int(pages[1]) - int(pages[2])) * 4096 / 2**20


def tidy() -> None:
    """What was freed goes back to the kernel: glibc keeps some, at times fifty megabytes of it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def gateway(replica: Replica, serve: PretendTransport) -> Iterator[Pretend]:
    """A gateway with a lane to the replica, and Serve, for which `serve` stands."""
    found = pretend(over_links=True, max_body_bytes=16 << 20)
    assert found.links is not None
    found.links._servers[TONES.app] = (replica, replica.address)  # type: ignore[assignment]
    try:
        with serving(found):
            [transport] = found.links._by_loop.values()
            transport._serve = serve  # type: ignore[assignment]
            yield found
    finally:
        found.links.close()


def body(size_mib: int, first: float = 1.0) -> bytes:
    """A request of so many MiB, whose samples' sums are known."""
    values = np.ones((size_mib * 2**20 // SAMPLE_BYTES, 800), np.float32)
    values[0, 0] = first
    request = InferRequest({"audio": values}, parameters={"binary_data_output": True})
    written = binary.write_request(request)
    return post(written.body, PATH, f"{binary.HEADER}: {written.json_bytes}")


def check(answer: Answer, size_mib: int) -> None:
    assert answer.status == 200, answer.body[:300]
    found = binary.read_response(answer.body, answer.headers.get(binary.HEADER.lower())).outputs["value"]
    assert found.shape == (size_mib * 2**20 // SAMPLE_BYTES, 1)
    assert (found == 800).all()


def flood(ingress: Pretend, sent: dict[int, bytes], number: int) -> None:
    """So many requests of each size, by four clients at once."""

    def one(client: int) -> None:
        with connect(ingress) as connection, connection.makefile("rb") as stream:
            for turn in range(client, number * len(SIZES_MIB), 4):
                size_mib = SIZES_MIB[turn % len(SIZES_MIB)]
                connection.sendall(sent[size_mib])
                check(read(stream), size_mib)

    with ThreadPoolExecutor(4) as clients:
        list(clients.map(one, range(4)))


def no_clients(ingress: Pretend) -> None:
    """Until their connections are closed."""
    gateway = ingress.gateway
    assert gateway is not None
    until(lambda: gateway.num_connections == 0)


@pytest.mark.parametrize("number", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_large_bodies_leave_nothing_behind(tmp_path: Path, number: int) -> None:
    """Of each size so many."""
    sent = {size_mib: body(size_mib) for size_mib in SIZES_MIB}
    serve = PretendTransport()
    shared = set(os.listdir("/dev/shm"))
    replica = Replica(tmp_path / "s")
    with gateway(replica, serve) as ingress:
        flood(ingress, sent, 8)
        tidy()
        free, before = slots(ingress), (memory_mib(), replica.memory_mib())
        no_clients(ingress)
        opened = (kinds_open(), replica.num_open())
        flood(ingress, sent, number)
        until(lambda: ingress.metrics.in_flight == 0)
        tidy()
        after = (memory_mib(), replica.memory_mib())
        until(lambda: replica.num_open() == opened[1], "the replica has more open")
        until(lambda: kinds_open() == opened[0], "the gateway has more open")
        assert slots(ingress) == free
        assert free.count(RING.slots) == len(free)
        assert [now - then < GROWTH_MIB for now, then in zip(after, before, strict=True)] == [True] * 2, (
            f"MiB before {before}, after {after}"
        )
        [line] = [line for line in lines_of(ingress) if line.app == TONES.app]
        assert not any(link.in_flight for link in line.pool.links)
    assert serve.asked == [], "all went over the link"
    # Not one that comes and goes: other processes have theirs there.
    until(lambda: set(os.listdir("/dev/shm")) <= shared, "a file is left in /dev/shm")
    until(lambda: rings() == [])


def test_a_replica_that_is_killed_with_requests_in_its_ring(tmp_path: Path) -> None:
    """Serve has them once more; their slots go with the ring; the next replica has a ring of its own."""
    gc.collect()
    sent, held = body(1), body(1, first=-1.0)
    serve = PretendTransport()
    replica = Replica(tmp_path / "s")
    another: Replica | None = None
    with gateway(replica, serve) as ingress:
        assert ingress.links is not None
        assert ingress.thread is not None
        [transport] = ingress.links._by_loop.values()
        line = transport.line(TONES.app)
        assert line is not None

        def links() -> list[Any]:
            return list(line.pool.links)

        def tell(one: Replica) -> None:
            """This one runs now, with room for every sample."""
            told = threading.Event()

            def update() -> None:
                transport.update(TONES.app, [Running(one.address, 1 << 20)])
                told.set()

            assert ingress.thread is not None
            ingress.thread._loop.call_soon_threadsafe(update)
            assert told.wait(5)

        tell(replica)

        with connect(ingress) as connection, connection.makefile("rb") as stream:
            connection.sendall(sent)
            check(read(stream), 1)
        no_clients(ingress)
        opened = kinds_open()
        connections = [connect(ingress) for _ in range(RING.slots + 4)]
        try:
            for connection in connections[:-1]:
                connection.sendall(held)
            connections[-1].sendall(held[: len(held) // 2])  # in a slot that it fills, were there one
            until(lambda: links()[0].in_flight == RING.slots + 3)
            assert links()[0]._ring.num_free == 0
            serve.change = lambda outputs: {**outputs, "value": outputs["value"] * 0 + 800}
            replica.process.kill()
            answers = []
            for connection in connections[:-1]:
                with connection.makefile("rb") as stream:
                    answers.append(read(stream))
            assert {answer.status for answer in answers} <= {200, 502}
            again = [answer for answer in answers if answer.status == 200]
            assert len(again) == len(serve.asked) >= 10, "as many as the budget for second tries has"
            for answer in again:
                check(answer, 1)
            assert {answer.headers["retry-after"] for answer in answers if answer.status == 502} <= {"1"}
            until(lambda: not links())
            connections[-1].sendall(held[len(held) // 2 :])
            with connections[-1].makefile("rb") as stream:
                assert read(stream).status in (200, 502)
        finally:
            for connection in connections:
                connection.close()
        until(lambda: ingress.metrics.in_flight == 0)
        another = Replica(tmp_path / "s2")
        try:
            tell(another)
            until(lambda: any(link.takes_requests for link in links()))
            serve.asked.clear()  # its values were those of the dead one's ring
            with connect(ingress) as connection, connection.makefile("rb") as stream:
                for _ in range(20):
                    connection.sendall(sent)
                    check(read(stream), 1)
            assert serve.asked == []
            assert [link._ring.num_free for link in links()] == [RING.slots]
            until(lambda: kinds_open() == opened, "something of the dead one is open still")
        finally:
            another.close()
    until(lambda: rings() == [])
