"""Searches on a real cluster, by the driver's own command line: trials, failures, stops, kills, resumes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
BASE = {
    "kind": "train",
    "name": "t",
    "data": {"kind": "digits", "normalize": "standard"},
    "model": {"kind": "mlp", "hidden": [16]},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "sgd", "lr": 0.1},
    "training": {"steps": 60, "evaluate_every_steps": 20},
}


@dataclass
class Log:
    """What a driver printed, and how it ended."""

    exit_code: int = -1
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def search_id(self) -> str:
        return next(line.split()[1] for line in self.lines if re.match(r"search \S+-\d{8}-\d{6}-\w+$", line))


@dataclass
class Folders:
    """What a search left in storage."""

    storage: Path
    search_id: str

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "report.json").read_text())

    @property
    def folder(self) -> Path:
        return self.storage / "searches" / self.search_id

    @property
    def trials(self) -> pd.DataFrame:
        data = io.BytesIO((self.folder / "trials.parquet").read_bytes())
        return pd.read_parquet(data).set_index("trial")

    def run_report(self, number: int) -> dict[str, Any]:
        folder = self.storage / "runs" / f"{self.search_id}-{number:03d}"
        return json.loads((folder / "report.json").read_text())


@pytest.fixture
def folders(eagleray_home: Path) -> Callable[[Log], Folders]:
    return lambda log: Folders(eagleray_home / "storage", log.search_id)


@pytest.fixture
def spec_file(tmp_path: Path) -> Callable[..., str]:
    def write(**changes: Any) -> str:
        table = {"kind": "tune", "name": "t", "base": BASE, "scheduler": {"kind": "none"}, **changes}
        path = tmp_path / "search.json"
        path.write_text(json.dumps(table))
        return str(path)

    return write


@pytest.fixture
def tune(cluster_env: dict[str, str]) -> Callable[..., Log]:
    """Run a driver in the checkout to its end; `watch` sees each line of its output as it comes."""

    def run(*arguments: str, watch: Callable[[str, int], None] = lambda *_: None) -> Log:
        log = Log()
        with process(arguments, cluster_env) as driver:
            assert driver.stdout is not None
            for line in driver.stdout:
                log.lines.append(line.rstrip())
                watch(line, driver.pid)
            log.exit_code = driver.wait(60)
        return log

    return run


@contextmanager
def process(arguments: tuple[str, ...], env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    driver = subprocess.Popen(
        (sys.executable, "-m", "eagleray.workflows.tune", *arguments),
        cwd=ROOT,
        env={**env, "PYTHONPATH": str(ROOT / "platform")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield driver
    finally:
        if driver.poll() is None:
            driver.kill()
        driver.wait(60)


def choice(*values: Any) -> dict[str, Any]:
    return {"kind": "choice", "values": list(values)}


def test_trials_one_after_the_other_in_one_actor(
    tune: Callable[..., Log], spec_file: Callable[..., str], folders: Callable[[Log], Folders]
) -> None:
    log = tune(
        spec_file(
            space={"optimizer.lr": choice(0.1, 1e30, 0.1, 0.2)},
            searcher={"kind": "grid"},
            budget={"max_concurrent_trials": 1},
            scaling={"cpus_per_worker": 0.5},
        )
    )
    assert log.exit_code == 0, log.text
    assert "Traceback" not in log.text
    assert "ray.tune" not in log.text.lower(), "its own output is silenced"
    found = folders(log)
    assert list(found.trials["state"]) == ["finished", "failed", "finished", "finished"]
    assert re.search(
        r"trial 2 failed \(optimizer.lr=1e\+30\): step \d+: the gradient of \S+ is not", log.text
    )
    assert found.report["states"] == {"finished": 3, "failed": 1}
    best = found.report["best"]
    assert best["trial"] in (1, 3, 4)
    assert best["value"] == found.trials["validation_accuracy"].max()
    assert f"eagleray publish {best['run_id']} --search {log.search_id}" in log.text
    assert (found.folder / "history.png").read_bytes().startswith(b"\x89PNG")
    first, third = found.run_report(1), found.run_report(3)
    assert first["weights_digest"] == third["weights_digest"], "a trial leaves nothing behind in its actor"
    assert (first["status"], first["steps"], found.run_report(2)["status"]) == ("FINISHED", 60, "FAILED")
    assert found.trials["evaluations"][1] == 3
    assert not Path("~/ray_results").expanduser().exists()
    assert_mlflow_has(found)


def assert_mlflow_has(found: Folders) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["EAGLERAY_TRACKING_URI"])
    parent = json.loads((found.folder / "mlflow.json").read_text())["run_id"]
    experiment = client.get_experiment_by_name("eagleray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    runs = sorted(runs, key=lambda run: run.info.run_name)
    assert [run.info.run_name for run in runs] == list(found.trials["run_id"])
    assert [run.info.status for run in runs] == ["FINISHED", "FAILED", "FINISHED", "FINISHED"]
    assert runs[0].data.metrics["validation_accuracy"] == found.trials["validation_accuracy"][1]


@pytest.mark.slow
def test_all_trials_fail(tune: Callable[..., Log], spec_file: Callable[..., str]) -> None:
    log = tune(
        spec_file(
            space={"optimizer.lr": choice(1e30, 1e31)},
            searcher={"kind": "grid"},
            budget={"max_concurrent_trials": 1},
        )
    )
    assert log.exit_code == 1, log.text
    assert re.search(
        r"^error: all 2 trials failed; the first cause: trial 1 \(optimizer.lr=1e\+30\): step \d+",
        log.text,
        re.M,
    )
    assert "Traceback" not in log.text


@pytest.mark.slow
@pytest.mark.parametrize("searcher", ["tpe", "random"])
def test_kill_9_of_the_driver_and_resume(
    searcher: str,
    tune: Callable[..., Log],
    spec_file: Callable[..., str],
    folders: Callable[[Log], Folders],
    eagleray_home: Path,
) -> None:
    steps = {"steps": 1500, "evaluate_every_steps": 20}
    killed: list[int] = []

    def kill(line: str, pid: int) -> None:
        if re.match(r" +\d+ +finished", line) and not killed:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    first = tune(
        spec_file(
            base={**BASE, "training": steps},
            space={"optimizer.lr": {"kind": "loguniform", "min": 0.01, "max": 0.3}},
            searcher={"kind": searcher},
            budget={"num_trials": 5, "max_concurrent_trials": 2},
            scaling={"cpus_per_worker": 0.5},
        ),
        watch=kill,
    )
    assert first.exit_code == -signal.SIGKILL
    kept = {}
    for path in sorted((eagleray_home / "storage/searches" / first.search_id / "trials").iterdir()):
        kept[path.name] = json.loads(path.read_text())
    second = tune("--resume", first.search_id)
    assert second.exit_code == 0, second.text
    found = folders(first)
    assert list(found.trials["state"]) == ["finished"] * 5
    assert found.report["status"] == "FINISHED"
    for record in kept.values():
        assert found.trials["optimizer.lr"][record["number"]] == record["values"]["optimizer.lr"]
    gone_on = [record["number"] for record in kept.values() if record["state"] == "running"]
    assert gone_on, "one was killed in the middle"
    for number in gone_on:
        attempts = found.storage / "runs" / f"{first.search_id}-{number:03d}" / "attempts"
        assert len(list(attempts.iterdir())) == 2
        steps_seen = [one["step"] for one in json.loads((attempts.parent / "evaluations.json").read_text())]
        assert steps_seen == list(range(20, 1501, 20)), "evaluated once each"
    assert not list(found.folder.glob(".ray-tune-*")), "nothing is left of Ray Tune, of the killed driver too"
    finished = [record for record in kept.values() if record["state"] == "finished"]
    for record in finished:
        assert found.trials["seconds"][record["number"]] == record["seconds"], "left alone"
    again = tune("--resume", first.search_id)
    assert again.exit_code == 2
    assert f"error: search {first.search_id} is over" in again.text


@pytest.mark.slow
def test_a_stopped_search_keeps_what_it_has_and_goes_on(
    tune: Callable[..., Log], spec_file: Callable[..., str], folders: Callable[[Log], Folders]
) -> None:
    def stop(line: str, pid: int) -> None:
        if re.match(r" +\d+ +running .* \d+/1500", line):
            os.kill(pid, signal.SIGTERM)

    first = tune(
        spec_file(
            base={**BASE, "training": {"steps": 1500, "evaluate_every_steps": 50}},
            space={"optimizer.lr": {"kind": "loguniform", "min": 0.01, "max": 0.3}},
            searcher={"kind": "random"},
            budget={"num_trials": 2, "max_concurrent_trials": 2},
            scaling={"cpus_per_worker": 0.5},
        ),
        watch=stop,
    )
    assert first.exit_code == 1, first.text
    assert first.lines[-1] == f"stopped; go on with it: eagleray tune --resume {first.search_id}"
    found = folders(first)
    assert found.report["status"] == "STOPPED"
    assert set(found.trials["state"]) <= {"interrupted", "finished", "waiting"}
    second = tune("--resume", first.search_id)
    assert second.exit_code == 0, second.text
    assert list(found.trials["state"]) == ["finished", "finished"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_trials_of_two_workers_and_asha_leaves_no_worker_behind(
    tune: Callable[..., Log],
    spec_file: Callable[..., str],
    folders: Callable[[Log], Folders],
    eagleray_home: Path,
) -> None:
    log = tune(
        spec_file(
            base={**BASE, "training": {"steps": 600, "evaluate_every_steps": 30}},
            space={"optimizer.lr": choice(0.1, 1e-6)},
            searcher={"kind": "grid"},
            scheduler={"kind": "asha", "grace_evaluations": 2, "reduction_factor": 2},
            budget={"max_concurrent_trials": 1},
            scaling={"num_workers": 2, "cpus_per_worker": 0.5},
        )
    )
    assert log.exit_code == 0, log.text
    found = folders(log)
    assert list(found.trials["state"]) == ["finished", "stopped"]
    assert (found.trials["step"][2], found.trials["why_stopped"][2]) == (60, "asha, after 2 evaluations")
    assert found.run_report(1)["status"] == "FINISHED"
    assert found.run_report(1)["sent_bytes"] > 0
    assert "Traceback" not in log.text
    deadline = time.monotonic() + 10
    while left := trial_processes(eagleray_home):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def trial_processes(home: Path) -> dict[int, str]:
    """Process id and command of each actor of a trial, and each worker, on this session's cluster."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            is_ours = str(home).encode() in (entry / "environ").read_bytes()
            if is_ours and re.match(
                r"ray::(WorkerActor|OneWorkerTrial|ManyWorkersTrial|ResourceTrainable)", command
            ):
                found[int(entry.name)] = command
    return found


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint(
    tune: Callable[..., Log],
    spec_file: Callable[..., str],
    folders: Callable[[Log], Folders],
    eagleray_home: Path,
) -> None:
    killed: list[int] = []

    def kill(line: str, pid: int) -> None:
        if re.match(r" +1 +running .* [1-9]\d*/6000", line) and not killed:
            killed.extend(trial_processes(eagleray_home))  # none: it is between two processes, or done
            if killed:
                os.kill(killed[0], signal.SIGKILL)

    log = tune(
        spec_file(
            base={**BASE, "training": {"steps": 6000, "evaluate_every_steps": 20}},
            space={"optimizer.lr": choice(0.1)},
            searcher={"kind": "grid"},
            budget={},
        ),
        watch=kill,
    )
    assert log.exit_code == 0, log.text
    assert re.search(r"^trial 1: lost its process at step \d+; it is started again$", log.text, re.M)
    report = folders(log).run_report(1)
    assert (report["status"], report["steps"], report["num_attempts"]) == ("FINISHED", 6000, 2)
    assert "Traceback" not in log.text


@pytest.mark.slow
def test_the_time_budget_ends_what_still_runs(
    tune: Callable[..., Log], spec_file: Callable[..., str], folders: Callable[[Log], Folders]
) -> None:
    log = tune(
        spec_file(
            base={**BASE, "training": {"steps": 100_000, "evaluate_every_steps": 20}},
            space={"optimizer.lr": choice(0.1, 0.2, 0.3)},
            searcher={"kind": "grid"},
            budget={"max_concurrent_trials": 1, "time_s": 25},
        )
    )
    assert log.exit_code == 0, log.text
    found = folders(log)
    assert found.report["best"]["state"] == "stopped"
    assert (found.trials["state"][1], found.trials["why_stopped"][1]) == ("stopped", "time budget")
    assert found.run_report(1)["status"] == "STOPPED"


def test_a_search_that_can_never_be_placed_is_refused(
    tune: Callable[..., Log], spec_file: Callable[..., str]
) -> None:
    log = tune(
        spec_file(
            space={"optimizer.lr": choice(0.1)},
            searcher={"kind": "grid"},
            budget={},
            scaling={"num_workers": 9},
        )
    )
    assert log.exit_code == 3, log.text
    assert re.search(r"^error: wants 9 workers with 1 CPU", log.text, re.M)
