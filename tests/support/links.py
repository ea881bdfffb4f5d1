"""Both ends of a link for tests: a replica that can be told what to do, and a gateway on a loop."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from eagleray.protocol.tensors import Array
from eagleray.serving.link import tensors
from eagleray.serving.link.answers import Answer
from eagleray.serving.link.calls import Call, GenerateCall, InferCall
from eagleray.serving.link.client import Link, connect
from eagleray.serving.link.frames import Timings
from eagleray.serving.link.pool import Pool
from eagleray.serving.link.ring import RingOptions, Slot
from eagleray.serving.link.server import LinkServer
from eagleray.serving.link.sockets import ReplicaAddress

KEY = bytes(range(32))
MAX_FRAME_BYTES = 4 << 20
RING = RingOptions(slots=4, slot_bytes=1 << 20)
TIMINGS = Timings(1, 2, 3, 4, 5)


class Doubler:
    """Answers each array with twice its values; holds calls back where it is told to."""

    def __init__(self) -> None:
        self.calls: list[InferCall] = []
        self.generating: list[GenerateCall] = []
        self.cancelled: list[Call] = []
        self.flushes: list[int] = []
        """Calls at each flush that had any."""
        self.is_holding = False
        self.has_call = threading.Event()

    def infer(self, call: InferCall) -> None:
        self.calls.append(call)
        self.has_call.set()

    def generate(self, call: GenerateCall) -> None:
        self.generating.append(call)
        self.has_call.set()

    def cancel(self, call: Call) -> None:
        self.cancelled.append(call)

    def flush(self) -> None:
        if self.is_holding or not self.calls:
            return
        self.flushes.append(len(self.calls))
        calls, self.calls = self.calls, []
        for call in calls:
            self.answer(call)

    def answer(self, call: InferCall) -> None:
        try:
            inputs = call.inputs()
        except tensors.TensorError as error:
            call.refuse(str(error))
            return
        outputs = {name: array if array.dtype.hasobject else array * 2 for name, array in inputs.items()}
        call.answer(tensors.write(outputs), TIMINGS)


@dataclass
class Served:
    """A replica that runs in this process."""

    server: LinkServer
    address: ReplicaAddress
    handler: Any

    def do(self, work: Callable[[], Any]) -> Any:
        """What `work` gave, done in the replica's loop."""
        done, found = threading.Event(), []

        def run() -> None:
            try:
                found.append(work())
            finally:
                done.set()

        self.server.call_soon(run)
        assert done.wait(5)
        return found[0]


@contextmanager
def serving(handler: Any = None, **options: Any) -> Iterator[Served]:
    """A replica in this process, closed at the end."""
    with tempfile.TemporaryDirectory(prefix="link-") as folder:
        handler = handler if handler is not None else Doubler()
        settings = {"folder": Path(folder) / "s", "host": "127.0.0.1", "max_frame_bytes": MAX_FRAME_BYTES}
        server = LinkServer(handler, KEY, node="n", **{**settings, **options})
        address = server.start()
        try:
            yield Served(server, address, handler)
        finally:
            server.close(0)


@dataclass
class Lost:
    """What `on_lost` was told."""

    reasons: list[str] = field(default_factory=list)
    event: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, link: Link, reason: str) -> None:
        self.reasons.append(reason)
        self.event.set()


def slot_of(link: Link) -> Slot:
    """A free slot of the link, which has one."""
    slot = link.take_slot()
    assert slot is not None
    return slot


def filled(link: Link, array: np.ndarray, offset: int = 0) -> tuple[Slot, bytes, int]:
    """A slot with the array as "x", its head, and the bytes of its values."""
    slot = slot_of(link)
    return slot, *placed(slot.view[offset:], {"x": array})


def placed(place: memoryview, arrays: Mapping[str, Array]) -> tuple[bytes, int]:
    """The head of arrays whose values are put into `place`, and how many bytes they take."""
    head, *values = tensors.write(arrays)
    length = tensors.put(place, values)
    assert length is not None, "no room"
    return bytes(head), length


def num_free(link: Link) -> int:
    """Slots that nobody has."""
    assert link._ring is not None
    return link._ring.num_free


def body_of(answer: Answer) -> memoryview:
    """What it carries."""
    assert answer.body is not None, answer
    return answer.body


async def linked(address: ReplicaAddress, kind: str = "unix", **options: Any) -> Link:
    """A link to the replica, by "unix" or "tcp"."""
    settings: dict[str, Any] = {"instance": address["instance"], "max_frame_bytes": MAX_FRAME_BYTES}
    settings |= {"ring": RING, "on_lost": Lost()}
    return await connect(address[kind], KEY, **{**settings, **options})


def asked(link: Link, **arrays: np.ndarray) -> Awaitable[Answer]:
    """The answer to come for these arrays."""
    return answered(lambda take: link.infer(tensors.write(arrays), 0, take))


def answered(begin: Callable[[Callable[[Answer], None]], Any]) -> asyncio.Future[Answer]:
    """What the callback that `begin` is given will be called with."""
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    begin(future.set_result)
    return future


def run(main: Coroutine[Any, Any, Any], timeout_s: float = 20) -> Any:
    """In a loop as the gateway has."""

    async def bounded() -> Any:
        async with asyncio.timeout(timeout_s):
            return await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


async def has_link(pool: Pool) -> None:
    """Wait until there is a replica to choose."""
    await until(lambda: pool.choose() is not None, f"no link; {pool.problems()}")


async def until(is_true: Callable[[], bool], what: str = "", timeout_s: float = 30) -> None:
    """Wait for it."""
    try:
        async with asyncio.timeout(timeout_s):
            while not is_true():
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what}") from None


def descriptors() -> list[str]:
    """What this process has open, and the rings that it has mapped."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    found = [name for name in found if name != "/dev/null"]  # uvloop opens it once for each loop
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return found + [line for line in maps.splitlines() if "eagleray-link" in line]


def rings() -> list[str]:
    """Of `descriptors`, those of rings."""
    return [name for name in descriptors() if "eagleray-link" in name]
