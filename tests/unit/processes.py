"""Fresh interpreters for tests that are about importing and starting."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """A finished fresh interpreter, with its output as text."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def fastest_s(arguments: Sequence[str], limit_s: float, attempts: int = 5) -> float:
    """Seconds of the fastest of some fresh interpreters; stops at the first one within the limit."""
    best_s = float("inf")
    for _ in range(attempts):
        started_s = time.perf_counter()
        finished = python(*arguments)
        best_s = min(best_s, time.perf_counter() - started_s)
        assert finished.returncode == 0, finished.stderr
        if best_s <= limit_s:
            break
    return best_s
