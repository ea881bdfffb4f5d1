"""What a trial reports, and when; without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eagleray.errors import TrainingError
from eagleray.packaging import Folder
from eagleray.specs import TrainSpec, validate
from eagleray.training.observer import WorkerInfo
from eagleray.tuning import trial
from eagleray.tuning.trial import PAUSING, Pausing, Reporter, details_of, in_words
from eagleray.tuning.tune_parts_ray260 import OneWorkerTrial

METRIC = "validation_loss"


@pytest.fixture
def reports() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def reporter(tmp_path: Path, reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Reporter:
    monkeypatch.setattr(trial, "REPORT_EVERY_S", 1e9)
    return Reporter(Folder(tmp_path), METRIC, reports.append)


def evaluate(reporter: Reporter, step: int, value: float) -> None:
    reporter.put("evaluation", step=step, part="validation", validation_loss=value)
    reporter.put("commit", step=step, seconds=0.1)


def test_an_evaluation_is_reported_once_its_checkpoint_is_there(
    reporter: Reporter, reports: list[dict[str, Any]], tmp_path: Path
) -> None:
    reporter.put("step", step=1, total_steps=40, loss=0.9)
    reporter.put("evaluation", step=20, part="validation", validation_loss=0.5)
    assert reports == []
    assert json.loads((tmp_path / "evaluations.json").read_text()) == [{"step": 20, "validation_loss": 0.5}]
    reporter.put("commit", step=20, seconds=0.1)
    report = reports.pop()
    assert [record["kind"] for record in report.pop("records")] == ["step", "evaluation", "commit"]
    assert report == {"evaluation": 1, "is_last": False, "step": 20, "validation_loss": 0.5}
    reporter.at(40)
    evaluate(reporter, 40, 0.4)
    report = reports.pop()
    assert (report["evaluation"], report["is_last"]) == (2, True)
    assert report["records"][-1]["kind"] == "at"


def test_without_an_evaluation_it_reports_once_a_second(
    reporter: Reporter, reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter.put("commit", step=3, seconds=0.1)
    assert reports == []
    monkeypatch.setattr(trial, "REPORT_EVERY_S", 0.0)
    reporter.put("step", step=4, total_steps=40, loss=0.9)
    assert [list(report) for report in reports] == [["records"]]
    assert len(reports[0]["records"]) == 2


def test_a_restarted_trial_counts_on_from_its_checkpoint(
    tmp_path: Path, reports: list[dict[str, Any]]
) -> None:
    first = Reporter(Folder(tmp_path), METRIC, reports.append)
    for step in (10, 20, 30):
        evaluate(first, step, 1 / step)
    second = Reporter(Folder(tmp_path), METRIC, reports.append)
    second.put("phase", name="training", step=20, attempt=2)
    evaluate(second, 30, 0.03)
    assert reports[-1]["evaluation"] == 3
    second.finished({"test": {}})
    assert [one["step"] for one in reports[-1]["outcome"]["evaluations"]] == [10, 20, 30]


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({"validation_loss": float("nan")}, "step 20: validation_loss is nan; lower optimizer.lr"),
        ({"validation_loss": float("inf")}, "step 20: validation_loss is inf"),
        ({"validation_accuracy": 0.5}, "step 20: validation_loss was not measured"),
    ],
)
def test_a_metric_that_is_no_number_ends_the_trial(
    reporter: Reporter, measured: dict[str, float], expected: str
) -> None:
    with pytest.raises(TrainingError, match=expected):
        reporter.put("evaluation", step=20, part="validation", **measured)


def test_a_failure_in_words() -> None:
    assert in_words(TrainingError("the loss is not finite\nmore")) == "the loss is not finite"
    assert details_of(TrainingError("x")) == []
    with pytest.raises(KeyError) as caught:
        raise KeyError("lr")
    assert in_words(caught.value) == "KeyError: 'lr'"
    assert 'raise KeyError("lr")' in "\n".join(details_of(caught.value))


@pytest.mark.parametrize(("unsaved", "saved_step"), [(None, 20), (20, 10)])
def test_a_trial_that_pauses_where_the_storage_refused_says_what_is_saved(
    reporter: Reporter, reports: list[dict[str, Any]], unsaved: int | None, saved_step: int
) -> None:
    reporter.put("commit", step=10, seconds=0.1)
    if unsaved is not None:
        reporter.put("unsaved", step=unsaved)
    reporter.paused(20)
    assert reports[-1]["paused"] == {"step": 20, "saved_step": saved_step}


def test_who_is_asked_to_pause_before_it_has_begun_pauses_when_it_begins() -> None:
    heard: list[tuple[str, float | None]] = []
    pausing = Pausing()
    pausing.ask(3.0)
    pausing.obey(lambda left_s: heard.append(("first", left_s)))
    pausing.ask(2.0)
    assert heard == [("first", 3.0), ("first", 2.0)]
    pausing.forget()
    pausing.obey(lambda left_s: heard.append(("second", left_s)))
    assert len(heard) == 2


@pytest.mark.parametrize("compression", [{"kind": "none"}, {"kind": "topk", "ratio": 0.1}])
def test_a_trial_that_pauses_goes_on_as_if_it_had_not(
    compression: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_this_worker", lambda: WorkerInfo(0, "node", 1, "127.0.0.1"))
    table = {
        "kind": "train",
        "name": "t",
        "data": {"kind": "digits"},
        "model": {"kind": "mlp", "hidden": [8]},
        "loss": {"kind": "cross_entropy"},
        "optimizer": {"kind": "adamw", "lr": 0.01},
        "training": {"steps": 30, "evaluate_every_steps": 10},
        "compression": {**compression, "rehearse": True},
        "checkpoint": {"at_evaluations": True},
    }
    spec = validate(TrainSpec, table, name="spec")

    def run(name: str, pause_at: int | None) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        reports: list[dict[str, Any]] = []

        def report(values: dict[str, Any]) -> None:
            reports.append(values)
            if pause_at is not None and values.get("step") == pause_at:
                OneWorkerTrial.pause(None, 9.0)  # type: ignore[arg-type]

        PAUSING.forget()
        reporter = Reporter(Folder(tmp_path / name), "validation_loss", report)
        outcome = trial._train_alone(spec, Folder(tmp_path / name), reporter, {})
        reporter.paused()
        return outcome, reports

    undisturbed, _ = run("undisturbed", None)
    assert undisturbed is not None
    nothing, first = run("paused", 10)
    assert nothing is None
    paused = first[-1]["paused"]
    assert paused["step"] == paused["saved_step"]
    assert 10 < paused["step"] < 20, "soon after it was asked to"
    outcome, second = run("paused", None)
    assert outcome is not None
    assert outcome["weights_digest"] == undisturbed["weights_digest"]
    steps = [one["step"] for one in [*first, *second] if "evaluation" in one]
    assert steps == [10, 20, 30]
