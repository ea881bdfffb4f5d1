"""Processes that a test talks with: it waits for their lines, and writes to their input."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT_S = 200.0


class Driver:
    """A process whose lines are read as they come."""

    def __init__(self, arguments: Sequence[str], env: dict[str, str]):
        self.process = subprocess.Popen(
            (sys.executable, *arguments),
            cwd=ROOT,
            env={**env, "PYTHONPATH": str(ROOT / "platform"), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._has_ended = False
        self._came = threading.Condition()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._came:
                self.lines.append(line.rstrip())
                self._came.notify_all()
        with self._came:
            self._has_ended = True
            self._came.notify_all()

    def wait_for(self, pattern: str, limit_s: float = LIMIT_S) -> re.Match[str]:
        """The first line that matches."""
        deadline, seen = time.monotonic() + limit_s, 0
        with self._came:
            while True:
                for line in self.lines[seen:]:
                    if found := re.search(pattern, line):
                        return found
                seen = len(self.lines)
                assert not self._has_ended, f"ended without {pattern!r}:\n{self.text}"
                assert self._came.wait(deadline - time.monotonic()), f"no {pattern!r} in:\n{self.text}"

    def say(self, line: str) -> None:
        """Write it to its input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def end(self, limit_s: float = LIMIT_S) -> int:
        """Let it come to its end; its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(limit_s)
        self._thread.join()
        return code

    @property
    def text(self) -> str:
        return "\n".join(self.lines)
