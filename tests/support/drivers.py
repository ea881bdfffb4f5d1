"""Drivers of runs as processes of their own, and what they print."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eagleray.cluster import state

ROOT = Path(__file__).parents[2]
DIGITS = "examples/train/digits.toml"
DRIVER = (sys.executable, "-m", "eagleray.workflows.train")
RESUME = (sys.executable, "-m", "eagleray.workflows.resume")
SUBMIT = ("ray", "job", "submit", "--runtime-env", "runtime_env.yaml", "--", "python", "jobs/train.py")


@dataclass
class Log:
    """What a driver printed, and what can be read from it."""

    process: subprocess.Popen[str]
    exit_code: int = -1
    lines: list[str] = field(default_factory=list)
    pids: dict[int, int] = field(default_factory=dict)
    """By rank, of the latest formation."""
    nodes: dict[int, str] = field(default_factory=dict)
    """The same."""
    step: int = 0

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def run_id(self) -> str:
        return next(line.split()[1] for line in self.lines if re.match(r"run \S+-\d{8}-\d{6}-\w+$", line))

    def take(self, line: str) -> None:
        self.lines.append(line)
        if re.match(r"attempt \d+: ", line):
            self.pids.clear()
            self.nodes.clear()
        elif match := re.search(r"rank (\d+): node (\S+), pid (\d+)", line):
            self.pids[int(match[1])] = int(match[3])
            self.nodes[int(match[1])] = match[2]
        elif match := re.match(r"step (\d+)/", line):
            self.step = int(match[1])


def follow(
    command: tuple[str, ...], env: Mapping[str, str], watch: Callable[[str, Log], None] = lambda *_: None
) -> Log:
    """Run a command in the checkout to its end; `watch` sees each line of its output as it comes."""
    with _process(command, env) as process:
        log = Log(process)
        assert process.stdout is not None
        for line in process.stdout:
            log.take(line.rstrip())
            watch(line, log)
        log.exit_code = process.wait(60)
    return log


@contextmanager
def _process(command: tuple[str, ...], env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**env, "PYTHONPATH": str(ROOT / "platform"), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)


def report(home: Path, run_id: str) -> dict[str, Any]:
    """What the run's driver wrote at its end."""
    return json.loads((home / "storage" / "runs" / run_id / "report.json").read_text())


def environment(cluster: state.ClusterState) -> dict[str, str]:
    """For a process in which Ray's own commands and `ray.init()` reach the cluster."""
    mine = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    mine["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{mine['PATH']}"
    return {**mine, **state.environment(cluster)}
