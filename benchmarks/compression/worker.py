"""A worker: one rank on one host. It builds, runs and drops contestants as the parent says."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PORT = 29500
_WRAPPING = "Got the following error when running the callback: "
_STATUS = Path("/proc/self/status")
_TRADE = Path("/proc/self/net/dev")


def main(pipe: Connection, host: Any, address: str, rank: int, size: int, errors: str) -> None:
    """Enter the host (None: stay on this one), meet the others at `address`, obey until the pipe ends.

    What libraries write to the standard error goes to the file `errors`: an abort's reason is there only.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if host is not None:
        host.enter()
    import torch

    from eagleray import groups

    torch.set_num_threads(1)
    try:
        groups.form(rank=rank, world_size=size, backend="gloo", timeout_s=120, address=address)
        worker = Worker()
        gc.freeze()  # torch's own objects need no look at each collection
        pipe.send(("ok", None))
    except Exception as error:
        pipe.send(("error", first_line(error)))
        return
    try:
        while True:
            name, arguments = pipe.recv()
            try:
                pipe.send(("ok", getattr(worker, name)(*arguments)))
            except Exception as error:
                if os.environ.get("BENCH_DEBUG"):
                    traceback.print_exc()
                pipe.send(("error", first_line(error)))
    except (EOFError, OSError):
        os._exit(0)  # a contestant's threads may hang


class Worker:
    """What the parent calls by name. All ranks get the same calls in the same order."""

    def __init__(self):
        self._contestants: dict[str, Any] = {}
        self._base_mib: dict[str, float] = {}
        self._peak_mib: dict[str, float] = {}

    def build(self, name: str, warm_steps: int) -> dict[str, Any]:
        """Make a contestant and take its first steps; returns like `run`."""
        import schemes

        _give_memory_back()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._base_mib[name] = _memory_mib("VmRSS")
        self._contestants[name] = schemes.all_schemes()[name].build()
        warm = self.run(name, warm_steps)
        self._peak_mib[name] = _memory_mib("VmHWM") - self._base_mib.pop(name)
        return warm

    def run(self, name: str, count: int) -> dict[str, Any]:
        """So many steps; returns durations (seconds each), bytes sent per step, the whole's seconds."""
        import torch.distributed as dist

        contestant = self._contestants[name]
        dist.barrier()
        sent, started = sent_bytes(), time.perf_counter()
        durations = []
        for _ in range(count):
            before = time.perf_counter()
            contestant.step()
            durations.append(time.perf_counter() - before)
        own_s = time.perf_counter() - started
        dist.barrier()
        return {"durations": durations, "sent": (sent_bytes() - sent) / count, "wall_s": own_s}

    def facts(self, name: str) -> dict[str, Any]:
        """What the contestant says, and by how much the process grew in its first steps at most, MiB."""
        return {"peak_mib": self._peak_mib[name], **self._contestants[name].facts()}

    def drop(self, name: str) -> None:
        """Forget a contestant."""
        contestant = self._contestants.pop(name)
        contestant.close()
        del contestant
        _give_memory_back()

    def idle(self, seconds: float) -> float:
        """Bytes per second that go out while nothing is done."""
        before = sent_bytes()
        time.sleep(seconds)
        return (sent_bytes() - before) / seconds

    def train(self, *arguments: Any) -> Any:
        """A whole training to its end: see `convergence`."""
        import convergence

        return convergence.train(*arguments)


def sent_bytes() -> int:
    """What went out of this host's eth0 so far: the interface's tx_bytes; 0 where there is none."""
    lines = (line.split() for line in _TRADE.read_text().splitlines())
    return next((int(fields[9]) for fields in lines if fields[0] == "eth0:"), 0)


def first_line(error: BaseException) -> str:
    """`TypeError: what it says first`, at most 160 characters; where it says nothing, where it was raised.

    The errors that torch wraps around one of a hook's callback are taken off.
    """
    said = str(error).replace(_WRAPPING, "").strip().partition("\n")[0]
    inner = re.match(r"(RuntimeError: )*(?P<text>\w+Error: .*)", said)
    if inner is not None:
        return inner["text"][:160]
    if not said:
        at = traceback.extract_tb(error.__traceback__)[-1]
        said = f"at {Path(at.filename).name}:{at.lineno}: {at.line}"
    return f"{type(error).__name__}: {said}"[:160]


def _memory_mib(field: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def _give_memory_back() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
