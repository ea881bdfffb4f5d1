"""What every step of the demo uses: the console, the tally, our command line and Ray's."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from eagleray.cli.following import log_to

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
CLUSTER = os.environ.get("EAGLERAY_DEMO_CLUSTER", "demo")
ENDING_S = 30.0
RAY_CHATTER = re.compile(r"\d{4}-\d\d-\d\d .*\b(INFO|WARNING|SUCC)\b|Running entrypoint for job")
"""What `ray job submit` says about packaging and itself; the lines of the job are the others."""
console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """A step did not happen as it should."""


@dataclass
class Tally:
    """What the closing table shows."""

    keeps_cluster: bool = False
    rows: list[tuple[str, str]] = field(default_factory=list)
    nodes_seen: set[str] = field(default_factory=set)
    kills: list[int] = field(default_factory=list)
    num_jobs: int = 0

    def add(self, what: str, value: str) -> None:
        """One row."""
        self.rows.append((what, value))


def require(is_true: bool, otherwise: str) -> None:
    """Fail the demo unless something holds."""
    if not is_true:
        raise DemoError(otherwise)


def step(number: int, title: str) -> None:
    """A headline."""
    console.print(f"\n[bold cyan]{number}.[/] [bold]{title}[/]")


def say(text: str) -> None:
    """One line of a step."""
    console.print(f"   {text}", markup=False)


def eagleray(*arguments: str, check: bool = True, quiet: bool = False, shown: str = "") -> str:
    """Run our command line, show what it prints (after the command, where `shown`); returns its stdout."""
    if shown:
        console.print(f"   $ eagleray {shown}", style="green", markup=False)
    process = subprocess.Popen(
        [BIN / "eagleray", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=None if quiet else subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    lines = []
    with ending(process):
        for line in process.stdout:
            lines.append(line)
            if not quiet:
                say(line.rstrip())
    if process.wait() != 0 and check:
        raise DemoError(f"`eagleray {' '.join(arguments)}` ended with exit code {process.returncode}")
    return "".join(lines)


def of_cluster(*arguments: str) -> tuple[str, ...]:
    """Arguments with the demo's cluster named."""
    return (*arguments, "--name", CLUSTER)


def cluster_environment() -> dict[str, str]:
    """This process's environment, with what `eval "$(eagleray env)"` would export."""
    exports = eagleray(*of_cluster("env"), quiet=True)
    pairs = re.findall(r"^export (\w+)='?([^'\n]*)'?$", exports, flags=re.MULTILINE)
    return {**os.environ, **dict(pairs), "PATH": f"{BIN}:{os.environ['PATH']}"}


def status() -> dict[str, Any]:
    """`eagleray status --json`."""
    return json.loads(eagleray(*of_cluster("status", "--json"), quiet=True))


def submit(
    script: str,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    tally: Tally,
    watch: Callable[[str], None] | None = None,
) -> str:
    """Submit a job with Ray's own command line and follow it; returns its log."""
    command = [
        "ray", "job", "submit", "--runtime-env", "runtime_env.yaml", "--", "python", script, *arguments,
    ]  # fmt: skip
    console.print(f"   $ {' '.join(command)}", style="green", markup=False)
    process = subprocess.Popen(
        [str(BIN / "ray"), *command[1:]],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    lines = []
    assert process.stdout is not None
    with ending(process), log_to(sys.stdout, console) as log:
        for raw in process.stdout:
            line = raw.rstrip()
            if line and not RAY_CHATTER.match(line):
                lines.append(line)
                log.write(f"   {line}\n")
            if watch is not None:
                watch(line)
    if process.wait() != 0:
        raise DemoError(f"the job of {script} failed (exit code {process.returncode}); its log is above")
    tally.num_jobs += 1
    return "\n".join(lines)


def found_in(log: str, pattern: str) -> str:
    """What the pattern's group is in a job's log. Raises: DemoError where the log does not say."""
    match = re.search(pattern, log)
    if match is None:
        raise DemoError(f"the job's log does not say {pattern!r}")
    return match[1]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file."""
    return json.loads(path.read_text())


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[None]:
    """End the process as Ctrl-C does when the block is left early: `eagleray up` takes back what it began."""
    try:
        yield
    except BaseException:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(ENDING_S)
        process.kill()
        raise
