"""Both ends as processes of their own, killed while requests are in flight."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from eagleray.serving.link import tensors
from eagleray.serving.link.frames import Kind
from eagleray.serving.link.pool import Pool
from eagleray.serving.link.sockets import ReplicaAddress
from support import link_main
from support.links import (
    KEY,
    MAX_FRAME_BYTES,
    RING,
    Lost,
    answered,
    asked,
    body_of,
    descriptors,
    filled,
    has_link,
    linked,
    rings,
    run,
    serving,
    until,
)

LARGE = np.arange(150_000, dtype=np.float32)


@contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`link_main.py`, killed at the end."""
    process = subprocess.Popen(
        [sys.executable, link_main.__file__, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def replica_process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], ReplicaAddress]]:
    with child("replica", str(folder)) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())


def in_slot(link) -> asyncio.Future:
    slot, head, length = filled(link, LARGE)
    return answered(lambda take: link.infer_in_slot(slot, 0, length, head, 0, take))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_replica_that_is_killed_or_stopped(tmp_path: Path, how: signal.Signals) -> None:
    async def main(process: subprocess.Popen, address: ReplicaAddress) -> None:
        before = len(descriptors())
        for kind in ("unix", "tcp"):
            lost = Lost()
            link = await linked(address, kind, on_lost=lost, ping_s=0.05, silence_s=0.3)
            assert (await asked(link, x=np.ones(2))).kind == Kind.RESULT
            held = [asked(link, x=LARGE)] + ([in_slot(link) for _ in range(3)] if kind == "unix" else [])
            await asyncio.sleep(0.02)
            process.send_signal(how)
            assert {answer.kind for answer in await asyncio.gather(*held)} == {Kind.LOST}
            assert len(lost.reasons) == 1
            assert not link.is_open
            assert link.take_slot() is None
            del held, link
            if how == signal.SIGKILL:
                break
            process.send_signal(signal.SIGCONT)
        await until(lambda: rings() == [])
        assert len(descriptors()) <= before

    gc.collect()
    with replica_process(tmp_path / "s") as (process, address):
        run(main(process, address))
        assert Path(address["unix"]).exists()
    with serving(folder=tmp_path / "s"):
        assert not Path(address["unix"]).exists()  # stale, and removed


def test_a_gateway_that_is_killed() -> None:
    async def other() -> None:
        link = await linked(served.address)
        assert (await asked(link, x=np.ones(2))).kind == Kind.RESULT
        link.close()

    async def both_held() -> None:
        await until(lambda: len(handler.calls) == 2, "both requests")

    async def forgotten() -> None:
        await until(lambda: len(handler.cancelled) == 2 and not served.server._sessions)
        await until(lambda: rings() == [])

    gc.collect()
    with serving() as served, child("gateway", json.dumps(served.address)) as process:
        handler = served.handler
        handler.is_holding = True
        run(both_held())
        values = [served.do(call.inputs)["x"] for call in handler.calls]
        assert rings() != []
        process.kill()
        process.wait(10)
        run(until(lambda: len(handler.cancelled) == 2))
        assert all(call.is_cancelled for call in handler.cancelled)
        assert [float(array.sum()) for array in values] == [100_000.0] * 2  # whoever still reads it may
        served.do(lambda: [handler.answer(call) for call in handler.calls])  # and answers nobody
        values.clear()
        handler.calls.clear()
        run(forgotten())
        handler.is_holding = False
        run(other())


def test_a_pool_asks_another_replica(tmp_path: Path) -> None:
    async def main(process: subprocess.Popen, address: ReplicaAddress) -> None:
        pool = Pool(KEY, node="n", max_frame_bytes=MAX_FRAME_BYTES, ring=RING)
        pool.update([address])
        await has_link(pool)
        (link,) = pool.links
        slot, head, length = filled(link, LARGE)
        held = [
            answered(lambda take: pool.infer(tensors.write({"x": LARGE}), 5000, take)),
            answered(lambda take: pool.infer_in_slot(link, slot, 0, length, head, 0, take)),
            answered(lambda take: pool.generate(b"say", 0, print, take)),
            answered(lambda take: pool.infer(tensors.write({"x": LARGE}), 0, take, is_idempotent=False)),
        ]
        pool.update([address, served.address])
        await until(lambda: len(pool.links) == 2)
        process.kill()
        await until(lambda: bool(served.handler.generating))
        served.do(lambda: served.handler.generating[0].end(b"said", (0, 0, 0, 0, 1)))
        first, second, third, fourth = await asyncio.gather(*held)
        assert fourth.kind == Kind.LOST  # it might have been done
        for answer in (first, second):
            assert (tensors.read(body_of(answer))["x"] == LARGE * 2).all()
            answer.release()
        assert bytes(body_of(third)) == b"said"
        await pool.close()

    with serving() as served, replica_process(tmp_path / "s") as (process, address):
        run(main(process, address))
