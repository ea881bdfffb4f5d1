"""The demo's training runs: a CNN that loses a worker half-way, and a small GPT."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

from common import BIN, DemoError, Tally, console, found_in, read_json, require, submit

EPOCHS = 100
"""Some ten seconds on a free machine: the log that is followed comes a second or two late."""


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
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                raise DemoError("the run was over before one of its workers could be killed") from None
            self._tally.kills.append(victim)
            console.print(f"\n[bold cyan]3.[/] [bold]kill -9 {victim}[/] (rank {max(self._pids)})\n")


def train_digits(environment: dict[str, str], tally: Tally) -> None:
    """Train the CNN on two nodes, kill one worker, and check that the run did what it should."""
    longer = ("--set", f"training.epochs={EPOCHS}")
    spec, kill = "examples/train/digits.toml", KillOnce(tally, at_fraction=0.2)
    log = submit("jobs/train.py", (spec, *longer), environment, tally, kill)
    folder = Path(found_in(log, r"files in (\S+)"))
    report = read_json(folder / "report.json")
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
    require_in_mlflow(read_json(folder / "mlflow.json")["run_id"], report["run_id"])
    lost = recoveries[0]
    tally.add(
        "digits: first step after submission (2 nodes started for it)",
        f"{report['submit_to_first_step_s']:.1f} s",
    )
    tally.add("digits: test accuracy", f"{accuracy:.2%}")
    tally.add("digits: gradients sent", sent(report))
    tally.add(
        "digits: worker killed, training again after",
        f"{lost['pause_s']:.1f} s, {lost['redone_steps']} steps redone",
    )


def require_in_mlflow(mlflow_id: str, run_id: str) -> None:
    """MLflow has the run's metrics, its spec and its checkpoint."""
    from mlflow import MlflowClient

    from eagleray.cluster import settings

    client = MlflowClient(settings.tracking_uri())
    run = client.get_run(mlflow_id)
    names = {file.path for file in client.list_artifacts(mlflow_id)}
    require(run.data.metrics.get("test_accuracy", 0) > 0, f"MLflow has no test_accuracy of {run_id}")
    require({"spec.json", "curves.png"} <= names, f"MLflow has {sorted(names)} of {run_id}")
    require(any(name.startswith("checkpoint-") for name in names), f"MLflow has no checkpoint of {run_id}")


def train_gpt(environment: dict[str, str], tally: Tally) -> str:
    """Train the GPT and check that it learned and wrote something; returns its run id."""
    log = submit("jobs/train.py", ("examples/train/gpt.toml",), environment, tally)
    folder = Path(found_in(log, r"files in (\S+)"))
    report = read_json(folder / "report.json")
    sequence_length = read_json(folder / "spec.json")["data"]["sequence_length"]
    require(report["status"] == "FINISHED", f"the GPT run is {report['status']}")
    losses = (report["first_loss"], report["metrics"]["validation_loss"])
    require(losses[1] < 0.6 * losses[0], f"the GPT learned little: loss {losses[0]:.2f} -> {losses[1]:.2f}")
    require(report["completion"].startswith("def "), "the GPT completed nothing")
    tally.add(
        "gpt: first step after submission (nodes already up)", f"{report['submit_to_first_step_s']:.1f} s"
    )
    tally.add("gpt: loss per byte", f"{losses[0]:.2f} -> {losses[1]:.2f} in {report['steps']} steps")
    if report["sent_bytes"]:  # one worker alone sends nothing
        tally.add("gpt: gradients sent", sent(report))
    tally.add("gpt: speed", f"{report['samples'] * sequence_length / report['step_seconds']:,.0f} tokens/s")
    return report["run_id"]


def sent(report: dict[str, Any]) -> str:
    """How much a run sent, for the closing table."""
    choices = report["compression_choices"]
    chosen = f"; auto chose {choices[-1]['compressor']}" if choices else ""
    return f"{report['sent_bytes'] / 1e6:.1f} MB, {report['compression_ratio']:.1f}x less{chosen}"


def jobs_listed(environment: dict[str, str], tally: Tally) -> None:
    """Ray's own list shows every job of the demo (and one driver, which is not a job: it starts serving)."""
    listed = subprocess.run(
        [BIN / "ray", "job", "list"], env=environment, capture_output=True, text=True, check=False
    ).stdout
    num_succeeded = len(re.findall(r"JobType\.SUBMISSION.*?status=<JobStatus\.SUCCEEDED", listed))
    require(
        num_succeeded == tally.num_jobs,
        f"`ray job list` shows {num_succeeded} succeeded jobs, not {tally.num_jobs}:\n{listed}",
    )
    console.print(f"   $ ray job list: {num_succeeded} jobs succeeded", style="green")
