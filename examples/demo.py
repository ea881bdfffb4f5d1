"""The demo: everything that the platform does so far, on this machine, with Ray's own command line.

    make demo            all of it, then nothing is left running
    make demo KEEP=1     leaves the cluster up, to look at the Ray dashboard

Every step is checked; the exit code is 0 only if each one really happened.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eagleray.cli.following import log_on_stdout

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CLUSTER = os.environ.get("EAGLERAY_DEMO_CLUSTER", "demo")
IDLE_GRACE_S = 60.0
ENDING_S = 30.0
RAY_CHATTER = re.compile(r"\d{4}-\d\d-\d\d .*\b(INFO|WARNING|SUCC)\b|Running entrypoint for job")
"""What `ray job submit` says about packaging and itself; the lines of the job are the others."""
console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """A step did not happen as it should."""


@dataclass
class Tally:
    """What the closing table shows."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    nodes_seen: set[str] = field(default_factory=set)
    kills: list[int] = field(default_factory=list)

    def add(self, what: str, value: str) -> None:
        """One row."""
        self.rows.append((what, value))


def main() -> int:
    """Run the demo; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    keep = os.environ.get("KEEP", "") not in ("", "0")
    tally, started = Tally(), time.monotonic()
    code = 1
    try:
        play(tally)
        tally.add("whole demo", f"{time.monotonic() - started:.0f} s")
        code = 0
    except DemoError as error:
        console.print(f"\n[bold red]The demo failed:[/] {error}")
    except KeyboardInterrupt:
        console.print("\n[bold]Interrupted.[/]")
        code = 130
    finally:
        if keep and code == 0:
            left_up()
        else:
            code = take_down(tally) or code
    if code == 0:
        closing(tally, keep)
    return code


def play(tally: Tally) -> None:
    """The steps, in order."""
    step(1, "A local elastic cluster: Ray's autoscaler v2, a head without workload CPUs, no worker node yet")
    began = time.monotonic()
    eagleray("up", "--name", CLUSTER)
    tally.add("cluster up", f"{time.monotonic() - began:.1f} s")
    environment = cluster_environment()

    watcher = NodeWatcher(tally)
    with watcher:
        step(2, "A CNN on real handwritten digits: 2 workers, a logical GPU each, gradients in bf16")
        console.print(
            "   (and step 3: half-way, one of the two workers is ended with kill -9)\n", style="dim"
        )
        digits = submit("examples/train/digits.toml", environment, KillOnce(tally, at_fraction=0.4))
        check_digits(digits, tally)

        step(4, "A small GPT on the Python standard library's own source text")
        gpt = submit("examples/train/gpt.toml", environment)
        check_gpt(gpt, tally)
        jobs_listed(environment)

        step(5, "Nobody needs the nodes any more: they go away by themselves")
        wait_for_no_nodes(tally)
    tally.add("nodes started and stopped", f"{len(tally.nodes_seen)} and {len(tally.nodes_seen)}")


def step(number: int, title: str) -> None:
    """A headline."""
    console.print(f"\n[bold cyan]{number}.[/] [bold]{title}[/]")


def eagleray(*arguments: str, check: bool = True, quiet: bool = False) -> str:
    """Run our command line, show what it prints; returns its stdout."""
    process = subprocess.Popen(
        [BIN / "eagleray", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    assert process.stdout is not None
    lines = []
    with ending(process):
        for line in process.stdout:
            lines.append(line)
            if not quiet:
                console.print(f"   {line.rstrip()}", markup=False)
    if process.wait() != 0 and check:
        raise DemoError(f"`eagleray {' '.join(arguments)}` ended with exit code {process.returncode}")
    return "".join(lines)


def cluster_environment() -> dict[str, str]:
    """This process's environment, with what `eval "$(eagleray env)"` would export."""
    exports = eagleray("env", "--name", CLUSTER, quiet=True)
    pairs = re.findall(r"^export (\w+)='?([^'\n]*)'?$", exports, flags=re.MULTILINE)
    return {**os.environ, **dict(pairs), "PATH": f"{BIN}:{os.environ['PATH']}"}


class KillOnce:
    """Watches a job's log; ends one worker with SIGKILL when the run is far enough."""

    def __init__(self, tally: Tally, at_fraction: float):
        self._tally, self._at_fraction = tally, at_fraction
        self._pids: dict[int, int] = {}

    def __call__(self, line: str) -> None:
        """Take one line of the log."""
        if match := re.search(r"rank (\d+): node \S+, pid (\d+)", line):
            self._pids[int(match[1])] = int(match[2])
        match = re.search(r"step (\d+)/(\d+)", line)
        if match and not self._tally.kills and int(match[1]) >= self._at_fraction * int(match[2]):
            victim = self._pids[max(self._pids)]
            os.kill(victim, signal.SIGKILL)
            self._tally.kills.append(victim)
            console.print(f"\n[bold cyan]3.[/] [bold]kill -9 {victim}[/] (rank {max(self._pids)})\n")


def submit(spec: str, environment: dict[str, str], watch: Callable[[str], None] | None = None) -> Path:
    """Submit a training job with Ray's own command line and follow it; returns the run's folder."""
    command = [
        "ray", "job", "submit", "--runtime-env", "runtime_env.yaml", "--", "python", "jobs/train.py", spec,
    ]  # fmt: skip
    console.print(f"   $ {' '.join(command)}", style="green")
    process = subprocess.Popen(
        [str(BIN / "ray"), *command[1:]],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    run_folder = None
    assert process.stdout is not None
    with ending(process), log_on_stdout(console) as log:
        for raw in process.stdout:
            line = raw.rstrip()
            if line and not RAY_CHATTER.match(line):
                log.write(f"   {line}\n")
            if match := re.search(r"files in (\S+)", line):
                run_folder = Path(match[1])
            if watch is not None:
                watch(line)
    if process.wait() != 0 or run_folder is None:
        raise DemoError(f"the job of {spec} failed (exit code {process.returncode}); its log is above")
    return run_folder


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


def report_of(folder: Path) -> dict[str, Any]:
    """The run's report.json."""
    return json.loads((folder / "report.json").read_text())


def require(is_true: bool, otherwise: str) -> None:
    """Fail the demo unless something holds."""
    if not is_true:
        raise DemoError(otherwise)


def check_digits(folder: Path, tally: Tally) -> None:
    """The digits run did what it should."""
    report = report_of(folder)
    accuracy, recoveries = report["metrics"]["test_accuracy"], report["recoveries"]
    require(report["status"] == "FINISHED", f"the digits run is {report['status']}")
    require(accuracy >= 0.97, f"test accuracy {accuracy:.2%} is below 97 %")
    require(len(tally.kills) == 1, "no worker could be killed: the run was over too soon")
    require(len(recoveries) == 1, f"one worker was killed, but the run says it lost {len(recoveries)}")
    require(report["num_nodes"] >= 2, f"the workers were on {report['num_nodes']} node, not on 2")
    require(
        1.9 < report["compression_ratio"] < 2.1,
        f"bf16 should halve the bytes: {report['compression_ratio']:.2f}x",
    )
    for name in ("spec.json", "curves.png", "checkpoints", "history"):
        require((folder / name).exists(), f"{folder / name} is missing")
    lost = recoveries[0]
    tally.add(
        "digits: first step after submission (2 nodes started for it)",
        f"{report['submit_to_first_step_s']:.1f} s",
    )
    tally.add("digits: test accuracy", f"{accuracy:.2%}")
    tally.add(
        "digits: gradients sent",
        f"{report['sent_bytes'] / 1e6:.1f} MB, {report['compression_ratio']:.1f}x less",
    )
    tally.add(
        "digits: worker killed, training again after",
        f"{lost['pause_s']:.1f} s, {lost['redone_steps']} steps redone",
    )


def check_gpt(folder: Path, tally: Tally) -> None:
    """The GPT run did what it should."""
    report = report_of(folder)
    require(report["status"] == "FINISHED", f"the GPT run is {report['status']}")
    losses = (report["first_loss"], report["metrics"]["validation_loss"])
    require(losses[1] < 0.6 * losses[0], f"the GPT learned little: loss {losses[0]:.2f} -> {losses[1]:.2f}")
    require(report["completion"].startswith("def "), "the GPT completed nothing")
    tally.add(
        "gpt: first step after submission (nodes already up)", f"{report['submit_to_first_step_s']:.1f} s"
    )
    tally.add("gpt: loss per byte", f"{losses[0]:.2f} -> {losses[1]:.2f} in {report['steps']} steps")
    tally.add(
        "gpt: gradients sent", f"{report['sent_bytes'] / 1e6:.1f} MB, {report['compression_ratio']:.1f}x less"
    )
    tally.add("gpt: speed", f"{report['samples'] * 128 / report['step_seconds']:,.0f} tokens/s")


def jobs_listed(environment: dict[str, str]) -> None:
    """Ray's own list shows both jobs."""
    listed = subprocess.run(
        [BIN / "ray", "job", "list"], env=environment, capture_output=True, text=True, check=False
    ).stdout
    num_succeeded = len(re.findall(r"status=<JobStatus\.SUCCEEDED", listed))
    require(num_succeeded == 2, f"`ray job list` does not show two succeeded jobs:\n{listed}")
    console.print("   $ ray job list: 2 jobs succeeded", style="green")


def status() -> dict[str, Any]:
    """`eagleray status --json`."""
    return json.loads(eagleray("status", "--name", CLUSTER, "--json", quiet=True))


class NodeWatcher:
    """Notes every worker node that the cluster has had, from the state on disk, twice a second."""

    def __init__(self, tally: Tally):
        self._tally = tally
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> NodeWatcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        from eagleray.cluster import nodes, state

        folder = state.find(CLUSTER).nodes_dir
        while not self._stop.wait(0.5):
            self._tally.nodes_seen |= {node.node_id for node in nodes.read_all(folder)}


def wait_for_no_nodes(tally: Tally) -> None:
    """Until the autoscaler has taken the last idle node away."""
    began = time.monotonic()
    idle_timeout_s = 30.0
    while nodes := status()["nodes"]:
        waited = time.monotonic() - began
        require(
            waited < idle_timeout_s + IDLE_GRACE_S,
            f"after {waited:.0f} s these nodes are still there: {nodes}",
        )
        if int(waited) % 10 == 0:
            console.print(f"   {len(nodes)} idle nodes after {waited:.0f} s")
        time.sleep(1)
    seconds = f"{time.monotonic() - began:.0f} s"
    console.print(f"   no worker node left after {seconds}; {len(tally.nodes_seen)} were started in all")
    tally.add("idle nodes gone after", seconds)


def left_up() -> None:
    """What to do with a cluster that was left up."""
    dashboard = status()["dashboard_url"]
    console.print(f"\n[bold]The cluster is still up.[/] Ray dashboard: {dashboard}")
    console.print(f"   its token (for the login page): {BIN}/eagleray env --name {CLUSTER}", markup=False)
    console.print(f'   Ray\'s own commands: eval "$({BIN}/eagleray env --name {CLUSTER})"', markup=False)
    console.print(f"   end it: {BIN}/eagleray down --name {CLUSTER}", markup=False)


def take_down(tally: Tally) -> int:
    """End the cluster and look that nothing is left; returns an exit code."""
    from eagleray.cluster import processes, state

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # an impatient second Ctrl-C would leave half of it
    step(6, "Everything that was started is stopped")
    found = state.read(CLUSTER)
    if found is None:
        return 0
    began = time.monotonic()
    eagleray("down", "--name", CLUSTER, check=False)
    tally.add("cluster down", f"{time.monotonic() - began:.1f} s")
    left = processes.belonging(found.marker)
    if left or found.runtime_dir.exists() or found.directory.exists():
        console.print(f"[bold red]left behind:[/] processes {left}, {found.runtime_dir}, {found.directory}")
        return 1
    console.print("   no process, no listening port, no temporary folder left")
    return 0


def closing(tally: Tally, keep: bool) -> None:
    """The table, and what to try next."""
    table = Table(title="What happened", show_header=False)
    for what, value in tally.rows:
        table.add_row(what, value)
    console.print()
    console.print(table)
    console.print("\n[bold]Next:[/]")
    if not keep:
        console.print("   .venv/bin/eagleray up", markup=False)
    for command in (
        ".venv/bin/eagleray train examples/train/digits.toml --set scaling.num_workers=1",
        ".venv/bin/eagleray check examples/train/gpt.toml --set training.steps=1000",
        '.venv/bin/mlflow ui --backend-store-uri "sqlite:///$HOME/.eagleray/mlflow.db"',
    ):
        console.print(f"   {command}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
