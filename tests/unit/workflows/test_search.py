"""A search's folder, and what a later driver finds in it; without Ray."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eagleray.errors import InputError, SpecError, TrainingError
from eagleray.specs import TuneSpec, validate
from eagleray.training.observer import WorkerInfo
from eagleray.tuning import Trial
from eagleray.tuning.running import StopRequest
from eagleray.tuning.search import trial_spec
from eagleray.workflows.search import Search
from eagleray.workflows.search_monitor import SearchMonitor
from eagleray.workflows.search_results import to_parquet
from eagleray.workflows.tune import main, require_result, result_of

SPEC: dict[str, Any] = {
    "kind": "tune",
    "name": "t",
    "base": {
        "kind": "train",
        "name": "t",
        "data": {"kind": "digits"},
        "model": {"kind": "mlp"},
        "loss": {"kind": "cross_entropy"},
        "optimizer": {"kind": "adamw", "lr": 0.01},
        "training": {"epochs": 3},
    },
    "space": {"optimizer.lr": {"kind": "uniform", "min": 0.1, "max": 0.2}},
    "budget": {"num_trials": 4},
}


@pytest.fixture(autouse=True)
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EAGLERAY_STORAGE", str(tmp_path))
    return tmp_path


@pytest.fixture
def search() -> Search:
    return Search.create(validate(TuneSpec, SPEC, name="spec"))


class FakeTracker:
    """MLflow, as the monitor knows it."""

    def __init__(self, run_id: str | None = None) -> None:
        self.known_run_id = self.run_id = run_id
        self.tags: Mapping[str, str] = {}
        self.logged: list[tuple[Mapping[str, float], int]] = []
        self.status: str | None = None

    def start(
        self, name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None
    ) -> None:
        self.tags, self.known_run_id = tags, f"mlflow-{name}"

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.logged.append((metrics, step))

    def finish(self, status: str) -> list[str]:
        self.status = status
        return ["it was late"]


def monitor_of(search: Search, trials: list[Trial], parent: Any, trackers: list[Any]) -> SearchMonitor:
    def make_tracker(_: Any) -> Any:
        trackers.append(FakeTracker())
        return trackers[-1]

    return SearchMonitor(
        search.search_id,
        search.spec,
        search.folder,
        trials,
        parent=parent,
        make_tracker=make_tracker,
        say=lambda _: None,
        node_name=lambda node: node,
    )


def test_an_unknown_search_is_refused_and_names_those_that_are_like_it(search: Search) -> None:
    with pytest.raises(
        InputError, match=f"no search 't-nothing' in .*; searches like it: {search.search_id}$"
    ):
        Search.open("t-nothing")
    with pytest.raises(InputError, match=r"no search '\.\./t'"):
        Search.open("../t")


@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
def test_a_search_that_is_over_is_refused(search: Search, status: str) -> None:
    search.folder.write_json("report.json", {"status": status})
    with pytest.raises(InputError, match="is over; its results are in"):
        Search.open(search.search_id)


def test_a_damaged_spec_is_named(search: Search) -> None:
    search.folder.write_bytes("spec.json", b"{")
    with pytest.raises(SpecError, match=r"spec.json: not JSON"):
        Search.open(search.search_id)


def test_a_stopped_search_is_opened_as_it_was(search: Search) -> None:
    search.folder.write_json("report.json", {"status": "STOPPED"})
    found = Search.open(search.search_id)
    assert (found.search_id, found.spec, found.folder.url) == (
        search.search_id,
        search.spec,
        search.folder.url,
    )


@pytest.mark.parametrize("arguments", [[], ["a.toml", "--resume", "x"], ["--resume", "x", "--set", "a=1"]])
def test_either_a_spec_or_a_search(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "give a spec (with --set, if need be), or --resume SEARCH" in capsys.readouterr().err


def test_a_trial_from_its_creation_to_the_next_driver(search: Search, storage: Path) -> None:
    trials: list[Trial] = []
    parent, trackers = FakeTracker(), []
    monitor = monitor_of(search, trials, parent, trackers)
    for number in (1, 2, 3):
        trials.append(monitor.created(number, {"optimizer.lr": number / 10}))
        monitor.prepared(trials[-1], trial_spec(search.spec, trials[-1].values))
    for trial in trials[:2]:
        trial.state = "running"
        monitor.started(trial, 1, [WorkerInfo(0, "w1", 1, "127.0.0.1")])
    assert trackers == [], "MLflow does not have the search yet"
    parent.known_run_id = "parent"
    monitor.records(trials[0], [step_record(20), evaluation_record(20, 0.8)])
    assert trackers[0].tags["mlflow.parentRunId"] == "parent"
    trials[0].evaluated({"step": 20, "validation_accuracy": 0.8})
    trials[0].state, trials[0].seconds = "finished", 2.5
    monitor.ended(trials[0], {"test": {"accuracy": 0.7}, "progress": {"step": 20}, "evaluations": []}, ())
    assert monitor.close() == ["trial 1: it was late"]
    assert trackers[0].status == "FINISHED"
    assert ({"test_accuracy": 0.7}, 20) in [(metrics, 20) for metrics, _ in trackers[0].logged]
    run = storage / "runs" / f"{search.search_id}-001"
    report = json.loads((run / "report.json").read_text())
    assert (report["status"], report["search"], report["trial"]) == ("FINISHED", search.search_id, 1)
    assert report["metrics"]["test_accuracy"] == 0.7
    assert json.loads((run / "spec.json").read_text())["optimizer"]["lr"] == 0.1
    assert (run / "history" / "000001.parquet").exists()
    found = search.trials()
    assert [trial.state for trial in found] == ["finished", "waiting", "waiting"]
    assert [trial.values for trial in found] == [trial.values for trial in trials]
    assert found[1].nodes == []


@pytest.mark.parametrize("when", ["while it runs", "at its end", "never"])
def test_a_trial_that_ends_before_mlflow_has_the_search_is_not_lost(search: Search, when: str) -> None:
    trials: list[Trial] = []
    parent, trackers = FakeTracker(), []
    monitor = monitor_of(search, trials, parent, trackers)
    trials.append(monitor.created(1, {"optimizer.lr": 0.1}))
    monitor.prepared(trials[0], trial_spec(search.spec, trials[0].values))
    trials[0].state = "running"
    monitor.started(trials[0], 1, [WorkerInfo(0, "w1", 1, "127.0.0.1")])
    monitor.records(trials[0], [step_record(20), evaluation_record(20, 0.8)])
    trials[0].state = "stopped"
    monitor.ended(trials[0], {}, ())
    if when == "while it runs":
        parent.known_run_id = "parent"
        monitor.tick(is_waiting=False)
    elif when == "at its end":
        parent.run_id = "parent"
        parent.known_run_id = "parent"
    troubles = monitor.close()
    if when == "never":
        assert troubles == ["1 trial of 1"]
        return
    assert troubles == ["trial 1: it was late"]
    assert trackers[0].status == "KILLED"
    assert ({"validation_accuracy": 0.8}, 20) in trackers[0].logged


def step_record(step: int) -> dict[str, Any]:
    return {
        "kind": "step",
        "time": 1.0,
        "step": step,
        "epoch": 0,
        "consumed": 9,
        "total_steps": 40,
        "loss": 0.5,
        "learning_rate": 0.1,
        "num_steps": 20,
        "num_samples": 9,
        "seconds": 1.0,
        "sent_bytes": 0,
        "uncompressed_bytes": 0,
    }


def evaluation_record(step: int, value: float) -> dict[str, Any]:
    return {"kind": "evaluation", "time": 1.0, "step": step, "validation_accuracy": value}


def failed(number: int) -> Trial:
    return Trial(number, {"optimizer.lr": number / 10}, f"t-{number}", "failed", error=f"cause {number}")


@pytest.mark.parametrize(
    ("trials", "reason", "expected"),
    [
        (
            [failed(1), failed(2)],
            None,
            "all 2 trials failed; the first cause: trial 1 (optimizer.lr=0.1): cause 1",
        ),
        (
            [failed(1), failed(2)],
            "hopeless",
            "the first 2 trials failed, and the rest was given up; the first",
        ),
        ([Trial(1, {}, "t-1", "stopped")], "time", "no trial was evaluated within budget.time_s (9 s)"),
    ],
)
def test_a_search_without_a_result_says_why(trials: list[Trial], reason: str | None, expected: str) -> None:
    budget = {"num_trials": 4, "time_s": 9}
    search = Search.create(validate(TuneSpec, {**SPEC, "budget": budget}, name="spec"))
    stop = StopRequest()
    stop.reason = reason
    with pytest.raises(TrainingError) as caught:
        require_result(search, trials, stop)
    assert str(caught.value).startswith(expected)
    assert result_of(search, trials)["best"] is None


def test_values_of_mixed_kinds_go_into_one_table() -> None:
    rows = [
        {"trial": 1, "model.hidden": [8, 16], "seed": 1, "x": "a", "why": None},
        {"trial": 2, "model.hidden": [8], "seed": 1.5, "x": 3, "why": None},
    ]
    frame = pd.read_parquet(io.BytesIO(to_parquet(rows)))
    assert list(frame["model.hidden"]) == ["[8, 16]", "[8]"]
    assert list(frame["seed"]) == [1.0, 1.5]
    assert list(frame["x"]) == ["a", "3"]
