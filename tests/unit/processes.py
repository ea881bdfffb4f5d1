"""Fresh interpreters for tests that are about importing and starting."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
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
        timeout=150,
        check=False,
    )


def fastest_s(arguments: Sequence[str], limit_s: float, attempts: int = 5) -> float:
    """CPU seconds of the fastest of some fresh interpreters; stops at the first one within the limit.

    On an idle machine that is the time it takes; on a busy one it leaves out waiting for others.
    """
    best_s = float("inf")
    for _ in range(attempts):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        finished = python(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert finished.returncode == 0, finished.stderr
        best_s = min(best_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if best_s <= limit_s:
            break
    return best_s
