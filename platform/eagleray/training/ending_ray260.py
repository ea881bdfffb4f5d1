"""Ends a worker's process for good, also one that is stopped and hears nothing."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def end_process(actor: Any, node_id: str, pid: int) -> None:
    """End a worker; returns at once.

    `ray.kill` asks the process to end itself, which one that is stopped (SIGSTOP) does not hear: a task on
    its node sends SIGKILL.
    """
    with suppress(RayError):
        ray.kill(actor)
    strategy: Any = NodeAffinitySchedulingStrategy(node_id, soft=False)
    ray.remote(num_cpus=0, max_retries=0)(_kill).options(scheduling_strategy=strategy).remote(pid)


def _kill(pid: int) -> None:
    with suppress(OSError):  # it has ended
        if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
