"""What every design that restarts its workers pays: processes that import what a worker imports."""

from __future__ import annotations

import subprocess
import sys
import time

from messages import Teller

COUNTS = {"one_s": 1, "two_s": 2, "four_s": 4}


def floor(tell: Teller, reps: int) -> None:
    """Time until so many processes, started together, have imported ray and torch."""
    command = [sys.executable, "-c", "import ray, torch"]
    subprocess.run(command, check=True)  # the files are in memory from here on
    for number in range(reps):
        tell.repetition(**{name: together(command, count) for name, count in COUNTS.items()})
        tell.note(f"{number + 1}/{reps}")


def together(command: list[str], count: int) -> float:
    """Seconds until all of them have ended."""
    began = time.monotonic()
    started = [subprocess.Popen(command) for _ in range(count)]
    for process in started:
        assert process.wait() == 0
    return time.monotonic() - began
