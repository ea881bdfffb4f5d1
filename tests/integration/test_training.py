"""Training runs on a real cluster, by Ray's own command line and by the driver's: kills, errors, resume."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from eagleray.workflows.verify import verify
from support.drivers import DIGITS, DRIVER, RESUME, SUBMIT, Log, follow, report

EPOCHS = 50
"""Some seconds on a machine that is free: the log that is followed comes a second late."""


def test_a_job_goes_on_after_kill_9_of_a_worker(eagleray_home: Path, cluster_env: dict[str, str]) -> None:
    killed: list[int] = []
    meanwhile: list[Log] = []

    def kill_one(line: str, log: Log) -> None:
        match = re.search(r"step (\d+)/", line)
        if match and int(match[1]) >= 60 and not killed:
            killed.append(log.pids[1])
            os.kill(log.pids[1], signal.SIGKILL)
            meanwhile.append(follow((*RESUME, log.run_id), cluster_env))

    log = follow((*SUBMIT, DIGITS, "--set", f"training.epochs={EPOCHS}"), cluster_env, kill_one)
    assert log.exit_code == 0, log.text
    found = report(eagleray_home, log.run_id)
    assert found["status"] == "FINISHED"
    assert found["metrics"]["test_accuracy"] >= 0.95
    assert [recovery["ranks"] for recovery in found["recoveries"]] == [[1]]
    recovery = found["recoveries"][0]
    assert recovery["redone_steps"] == 0, "rank 0 kept its state, and gave it to the new rank 1"
    assert re.search(rf"lost rank 1 \(node \S+, pid {killed[0]}\): its process ended", log.text)
    verified = verify(log.run_id, print)
    assert verified.is_proven, verified.findings
    assert (verified.formations, verified.world_sizes) == ((1, 2), {2: found["steps"]})
    assert f"training again after {recovery['pause_s']:.1f} s" in log.text
    assert found["compression_ratio"] == pytest.approx(2.0, rel=0.03), "but for headers and biases"
    assert set(found["spans_s"]) == {"submitted", "driver", "nodes", "workers", "group", "first step"}
    folder = eagleray_home / "storage" / "runs" / log.run_id
    assert json.loads((folder / "spec.json").read_text())["training"]["epochs"] == EPOCHS
    for picture in ("curves.png", "size.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    goodput = found["goodput"]
    lost_s = sum(goodput["lost_s"].values())
    assert goodput["useful_s"] + lost_s + goodput["rest_s"] == pytest.approx(goodput["wall_s"], rel=0.01)
    assert goodput["wall_s"] >= found["seconds"], "from the submission on"
    assert goodput["useful_s"] == pytest.approx(_useful_s(found), rel=0.15), "as the steps' own clock says"
    way_back_s = [recovery[f"{part}_s"] for part in ("detect", "reschedule", "restore")]
    assert all(seconds > 0 for seconds in way_back_s)
    assert sum(way_back_s) <= recovery["pause_s"]
    assert sorted(path.name for path in (folder / "attempts").iterdir()) == ["000001.json", "000002.json"]
    assert "Traceback" not in log.text
    assert (meanwhile[0].exit_code, len(meanwhile[0].lines)) == (2, 2), meanwhile[0].text
    assert f"run {log.run_id} goes on already (job " in meanwhile[0].text


def _useful_s(report: dict) -> float:
    """Seconds in which steps were taken, but for those that a loss cut off: rank 0's clock, as it reports."""
    return report["step_seconds"] - report["blocked_seconds"]


def test_what_can_never_be_placed_is_refused_at_once(cluster_env: dict[str, str]) -> None:
    log = follow((*DRIVER, DIGITS, "--set", "scaling.num_workers=9"), cluster_env)
    assert log.exit_code == 3, log.text
    assert re.search(r"error: .*wants 9 workers with .*1 GPU.*node types allow at most 4", log.text)
    assert "Traceback" not in log.text


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(cluster_env: dict[str, str]) -> None:
    log = follow((*DRIVER, DIGITS, "--set", "optimizer={kind='sgd', lr=1e30}"), cluster_env)
    assert log.exit_code == 1, log.text
    assert re.search(r"error: step \d+: the gradient of \S+ is not finite.*lower optimizer.lr", log.text)
    assert log.text.count("attempt ") == 1, "an error that would come again is not retried"
    assert "Traceback" not in log.text


@pytest.mark.slow
def test_a_stopped_run_is_resumed_with_its_own_code(
    eagleray_home: Path, cluster_env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "my_net.py").write_text(
        "import torch\n"
        "def build(signature, width):\n"
        "    print('building my own net')\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.ReLU(),\n"
        "                               torch.nn.Linear(width, signature.num_classes))\n"
    )
    spec = tmp_path / "mine.toml"
    spec.write_text(
        "kind = 'train'\nname = 'mine'\ncode = ['my_net.py']\n"
        "[data]\nkind = 'digits'\nnormalize = 'standard'\n"
        "[model]\nkind = 'module'\nfunction = 'my_net:build'\narguments = { width = 32 }\n"
        "[loss]\nkind = 'cross_entropy'\n[optimizer]\nkind = 'adamw'\nlr = 1e-2\n"
        "[training]\nsteps = 4000\n[checkpoint]\nevery_steps = 100\n"
    )

    def stop(line: str, log: Log) -> None:
        match = re.search(r"step (\d+)/", line)
        if match and int(match[1]) >= 300 and stopped[0] is None:
            stopped[0] = int(match[1])
            os.kill(driver_pid(log), signal.SIGTERM)

    def driver_pid(log: Log) -> int:
        return int(subprocess.check_output(["pgrep", "-f", f"workflows.train {spec}"]).split()[0])

    stopped: list[int | None] = [None]
    first = follow((*DRIVER, str(spec)), cluster_env, stop)
    assert first.exit_code == 1, first.text
    assert f"go on with it: eagleray resume {first.run_id}" in first.text
    assert report(eagleray_home, first.run_id)["status"] == "STOPPED"
    (tmp_path / "my_net.py").unlink()
    second = follow((*RESUME, first.run_id), cluster_env)
    assert second.exit_code == 0, second.text
    found = report(eagleray_home, first.run_id)
    assert (found["status"], found["steps"]) == ("FINISHED", 4000)
    assert found["metrics"]["test_accuracy"] > 0.9
    assert "attempt 2" in second.text


@pytest.mark.slow
@pytest.mark.parametrize("run", ["nothing-like-it", "../etc"])
def test_an_unknown_run_is_refused(cluster_env: dict[str, str], run: str) -> None:
    log = follow((*RESUME, run), cluster_env)
    assert log.exit_code == 2
    assert f"error: no run {run!r}" in log.text
