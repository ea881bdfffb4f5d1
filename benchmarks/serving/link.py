"""Round trips per second of one link, gateway and replica in two processes, without HTTP and without a model.

`python benchmarks/serving/link.py [--seconds S] [--turns N]`. Rows take turns, so that a neighbour's noise
falls on all of them; medians are printed, with the CPU time of each end for one request, which a busy machine
disturbs less than the rate. "bytes alone" is the floor: as many bytes there and back by uvloop, which nobody
looks at.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import uvloop

from eagleray.serving.link import tensors
from eagleray.serving.link.calls import Call, GenerateCall, InferCall
from eagleray.serving.link.client import Answer, Link, connect
from eagleray.serving.link.frames import PIECE, Timings
from eagleray.serving.link.ring import RingOptions
from eagleray.serving.link.server import LinkServer

KEY = bytes(32)
MAX_FRAME_BYTES = 8 << 20
SMALL = np.zeros((1, 16), np.float32)
LARGE = np.zeros((1, 150_000), np.float32)
OUTPUT = np.zeros((1, 10), np.float32)
FRAME_BYTES = 16 + sum(map(len, tensors.write({"x": SMALL})))
TICK_S = os.sysconf("SC_CLK_TCK")


@dataclass
class Row:
    """One line of the table."""

    title: str
    kind: str
    in_flight: int
    run: Callable[..., object]
    rates: list[float] = field(default_factory=list)
    gateway_us: list[float] = field(default_factory=list)
    replica_us: list[float] = field(default_factory=list)


class Replica:
    """Reads every value of what is large, as a model would, and answers ten numbers."""

    def __init__(self) -> None:
        self.calls: list[InferCall] = []

    def infer(self, call: InferCall) -> None:
        """As Handler."""
        self.calls.append(call)

    def generate(self, call: GenerateCall) -> None:
        """As Handler: two hundred pieces at once."""
        for token in range(200):
            call.piece(b" token", token + 1)
        call.end(b"", Timings())

    def cancel(self, call: Call) -> None:
        """As Handler."""

    def flush(self) -> None:
        """As Handler."""
        calls, self.calls = self.calls, []
        for call in calls:
            values = call.inputs()["x"]
            if values.nbytes > 1000:
                int(values.view(np.int32).ravel()[::16].sum())  # every cache line
            call.answer(tensors.write({"y": OUTPUT}), Timings(1, 2, 3, 4, len(calls)))


class Echo(asyncio.Protocol):
    """The floor: as many bytes back as came, in one write for one read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        self.transport.write(data)


def replica() -> None:
    """The other process."""

    async def floor(path: str) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_unix_server(Echo, path)
        print(path, flush=True)
        await asyncio.Event().wait()

    kind, folder = sys.argv[2:4]
    if kind == "floor":
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(floor(f"{folder}/floor.sock"))
    server = LinkServer(
        Replica(), KEY, folder=Path(folder) / "s", host="127.0.0.1", max_frame_bytes=MAX_FRAME_BYTES
    )
    print(json.dumps(server.start()), flush=True)
    sys.stdin.read()


def through_socket(array: np.ndarray) -> Callable:
    def ask(link: Link, take: Callable[[Answer], None]) -> None:
        link.infer(tensors.write({"x": array}), 1000, take)

    return ask


def through_ring(link: Link, take: Callable[[Answer], None]) -> None:
    slot = link.take_slot()
    assert slot is not None
    head, *values = tensors.write({"x": LARGE})
    length = tensors.put(slot.view, values)
    assert length is not None
    link.infer_in_slot(slot, 0, length, bytes(head), 1000, take)


def of_pieces(link: Link, take: Callable[[Answer], None]) -> None:
    link.generate(b"", 0, lambda _piece, _tokens: None, take)


async def of_link(address: str, ask: Callable, in_flight: int, seconds: float) -> int:
    link = await connect(
        address,
        KEY,
        instance="",
        max_frame_bytes=MAX_FRAME_BYTES,
        ring=RingOptions(16, 1 << 20),
        on_lost=lambda *_: None,
    )
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    until_s, count, left = time.perf_counter() + seconds, 0, in_flight

    def take(answer: Answer) -> None:
        nonlocal count, left
        if answer.body:
            tensors.read(answer.body)
        answer.release()
        count += 1
        if time.perf_counter() < until_s:
            ask(link, take)
            return
        left -= 1
        if left == 0:
            done.set_result(None)

    for _ in range(in_flight):
        ask(link, take)
    await done
    link.close()
    return count


async def of_bytes(path: str, in_flight: int, seconds: float) -> int:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    until_s, received = time.perf_counter() + seconds, 0

    class Client(Echo):
        def data_received(self, data: bytes) -> None:
            nonlocal received
            received += len(data)
            if time.perf_counter() < until_s:
                self.transport.write(data)
            elif not done.done():
                done.set_result(None)

    _, client = await asyncio.get_running_loop().create_unix_connection(Client, path)
    client.transport.write(bytes(FRAME_BYTES * in_flight))
    await done
    client.transport.close()
    return received // FRAME_BYTES


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK_S


def measure(row: Row, address: dict[str, str], pid: int, seconds: float) -> None:
    begun_s, gateway_s, replica_s = time.perf_counter(), time.process_time(), cpu_s(pid)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if row.run is of_bytes:
            count = runner.run(of_bytes(address[row.kind], row.in_flight, seconds))
        else:
            count = runner.run(of_link(address[row.kind], row.run, row.in_flight, seconds))
    took_s = time.perf_counter() - begun_s
    row.rates.append(count / took_s)
    row.gateway_us.append((time.process_time() - gateway_s) / count * 1e6)
    row.replica_us.append((cpu_s(pid) - replica_s) / count * 1e6)


def said_by(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def rows() -> list[Row]:
    small, large = through_socket(SMALL), through_socket(LARGE)
    return [
        Row("bytes alone, unix", "floor", 16, of_bytes),
        Row("16 floats, unix", "unix", 16, small),
        Row("16 floats, TCP, sealed", "tcp", 16, small),
        Row("bytes alone, unix", "floor", 1, of_bytes),
        Row("16 floats, unix", "unix", 1, small),
        Row("600 KB, ring", "unix", 4, through_ring),
        Row("600 KB, unix socket", "unix", 4, large),
        Row("600 KB, TCP, sealed", "tcp", 4, large),
        Row("200 pieces of text, unix", "unix", 16, of_pieces),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Round trips of one link.")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", default="", help="rows whose title holds this")
    asked = parser.parse_args()
    gc.set_threshold(50_000, 20, 20)
    table = [row for row in rows() if asked.only in row.title]
    command = [sys.executable, __file__, "replica"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        tempfile.TemporaryDirectory(prefix="link-") as folder,
        subprocess.Popen([*command, "link", folder], **pipes) as link,
        subprocess.Popen([*command, "floor", folder], **pipes) as floor,
    ):
        try:
            address = {**json.loads(said_by(link)), "floor": said_by(floor).strip()}
            for _ in range(asked.turns):
                for row in table:
                    pid = floor.pid if row.kind == "floor" else link.pid
                    measure(row, address, pid, asked.seconds)
        finally:
            link.kill()
            floor.kill()
    titles = ("in flight", "requests/s", "most", "gateway us", "replica us")
    print(f"{'':<26} " + " ".join(f"{title:>11}" for title in titles))
    for row in table:
        numbers = [statistics.median(row.gateway_us), statistics.median(row.replica_us)]
        print(
            f"{row.title:<26} {row.in_flight:>11} {statistics.median(row.rates):>11,.0f}"
            f" {max(row.rates):>11,.0f} {numbers[0]:>11.1f} {numbers[1]:>11.1f}"
        )
    print(f"a stream is 200 pieces, {PIECE.size + 6} bytes each on the way; CPU times count 10 ms at a time")


if __name__ == "__main__":
    replica() if sys.argv[1:2] == ["replica"] else main()
