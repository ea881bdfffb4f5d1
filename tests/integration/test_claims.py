"""Searches and plain jobs under claims, on a real cluster with its ledger."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.conversing import ROOT, Driver

LABELS = {"eagleray.io/pool": "cpu"}
"""Two nodes with one CPU each."""
NUM_STEPS = 12_000
"""Of a trial: some seconds on a machine that is free."""
BASE = {
    "kind": "train",
    "name": "t",
    "data": {"kind": "digits", "normalize": "standard"},
    "model": {"kind": "mlp", "hidden": [16]},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "adamw", "lr": 0.01},
    "training": {"steps": NUM_STEPS, "evaluate_every_steps": 500},
}


def claimer(start: Callable[..., Driver], kind: str, bundle: dict[str, float]) -> Driver:
    script = str(ROOT / "tests/integration/claimer.py")
    return start(script, kind, f"{kind}-of-the-test", json.dumps(bundle), json.dumps(LABELS))


def evaluations(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "evaluations.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_trial_gives_its_node_to_a_service_and_goes_on_from_there(
    start: Callable[..., Driver], tmp_path: Path, eagleray_home: Path
) -> None:
    spec = tmp_path / "search.json"
    table = {
        "kind": "tune",
        "name": "claimed",
        "base": BASE,
        "space": {"optimizer.lr": {"kind": "choice", "values": [0.01, 0.01]}},
        "searcher": {"kind": "grid"},
        "scheduler": {"kind": "none"},
        "budget": {},
        "scaling": {"label_selector": LABELS},
    }
    spec.write_text(json.dumps(table))
    search, service = start("-m", "eagleray.workflows.tune", str(spec)), claimer(start, "service", {"CPU": 1})
    service.wait_for("^ready")
    search_id = search.wait_for(r"^search (\S+)").group(1)
    for number in (1, 2):
        search.wait_for(rf"^ +{number} +running .* [1-9]\d*/{NUM_STEPS}")
    service.say("go")
    granted = float(service.wait_for(r"^granted \S+ (\S+)").group(1))
    free = float(service.wait_for(r"^free (\S+)").group(1))
    paused = search.wait_for(r"^trial (\d): paused at step (\d+): needed by service service-of-the-test .*")
    assert "goes on from" not in paused.string, "nothing is to be done again"
    assert free < 10, f"granted after {granted:.1f} s"
    search.wait_for(rf"^ +{paused.group(1)} +paused ")
    assert service.end() == 0
    assert search.end() == 0, search.text
    runs = [eagleray_home / "storage/runs" / f"{search_id}-00{number}" for number in (1, 2)]
    reports = [json.loads((run / "report.json").read_text()) for run in runs]
    assert sorted(report["num_attempts"] for report in reports) == [1, 2]
    assert reports[0]["weights_digest"] == reports[1]["weights_digest"], "the pause changed nothing"
    for run in runs:
        assert [one["step"] for one in evaluations(run)] == list(range(500, NUM_STEPS + 1, 500))
    assert "Traceback" not in search.text
    assert "lost its process" not in search.text


HELD = """\
import os, pathlib, sys, time
print("runs on", os.environ["EAGLERAY_HELD_NODES"], "under", os.getppid(), flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.05)
sys.exit(3)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_second_job_has_its_turn_when_the_first_ends_and_the_third_when_that_is_killed(
    start: Callable[..., Driver], tmp_path: Path
) -> None:
    """Each wants three of the four nodes with a (logical) GPU."""
    script, release = tmp_path / "held.py", tmp_path / "release"
    script.write_text(HELD)

    def submit(file: Path) -> Driver:
        words = f"--gpu 1 --units 3 --label eagleray.io/pool=train -- python {script} {file}"
        submitted = "-m ray.scripts.scripts job submit --runtime-env runtime_env.yaml --"
        return start(*submitted.split(), "python", "-m", "eagleray.workflows.hold", *words.split())

    runs = r"^runs on (?:\S+=1,){2}\S+=1 under (\d+)"
    first = submit(release)
    first.wait_for(runs)
    second = submit(tmp_path / "never")
    second.wait_for(r"^waiting: .*job raysubmit_")
    release.touch()
    assert first.end() == 1, "as `ray job submit` ends where the job failed"
    assert "exit code 3" in first.text
    holder = int(second.wait_for(runs).group(1))
    third = submit(release)
    third.wait_for(r"^waiting: ")
    os.kill(holder, signal.SIGKILL)
    killed = time.monotonic()
    third.wait_for(runs)
    assert 5 < time.monotonic() - killed < 40, "after its lease"
    third.end()
    second.end()
