"""Ends a worker's process for good, also one that is stopped and hears nothing."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def end_process(actor: Any, node_id: str, pid: int) -> None:
    """End a worker; returns at once.

    `ray.kill` asks the process to end itself, which one that is stopped (SIGSTOP) does not hear: a task on
    its node sends SIGKILL. Both in a thread: while the GCS is away they wait for it, and the other ranks for
    whoever calls this.
    """
    threading.Thread(target=_end, args=(actor, node_id, pid), name=f"end-{pid}", daemon=True).start()


def _end(actor: Any, node_id: str, pid: int) -> None:
    with suppress(RayError):
        ray.kill(actor)
    strategy: Any = NodeAffinitySchedulingStrategy(node_id, soft=False)
    ray.remote(num_cpus=0, max_retries=0)(_kill).options(scheduling_strategy=strategy).remote(pid)


def _kill(pid: int) -> None:
    with suppress(OSError):  # it has ended
        if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
