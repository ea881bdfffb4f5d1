"""An evaluation in MLflow: a run below the training run, and the metrics of a version in the registry."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eagleray.errors import ModelNotFound, ServiceError
from eagleray.registry.tracking import Tracker
from eagleray.specs import EvaluateSpec
from eagleray.workflows.evaluate import Evaluation, evaluate, main
from eagleray.workflows.publish import models, publish
from eagleray.workflows.run import EXPERIMENT, runs
from support.runs import DIGITS, finish

NAME = "judged-digits"
RUN = f"{NAME}-20260131-120000-ab12"
EXAMPLE = str(Path(__file__).parents[3] / "examples/evaluate/digits.toml")


@pytest.fixture(scope="module")
def training_run(eagleray_home: Path) -> str:
    """MLflow's id of a finished run."""
    finish({**DIGITS, "name": NAME})
    tracker = Tracker(
        f"sqlite:///{eagleray_home}/mlflow.db", EXPERIMENT, artifact_root=f"{eagleray_home}/artifacts"
    )
    tracker.start(RUN, params={}, tags={"eagleray.run": RUN})
    assert tracker.finish("FINISHED") == []
    run_id = tracker.run_id
    assert run_id is not None
    runs().child(RUN).write_json("mlflow.json", {"run_id": run_id})
    return run_id


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """`main` listens for SIGTERM from then on; pytest's own way of ending comes back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def judged(kind: str, ref: str, said: list[str], **fields: Any) -> Evaluation:
    table = {"kind": "evaluate", "name": "judged", "model": {"kind": kind, "ref": ref}, **fields}
    return evaluate(EvaluateSpec.model_validate(table), said.append)


def in_mlflow(home: Path, evaluation_id: str) -> Any:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`eagleray.evaluation` = '{evaluation_id}'")
    return run, {artifact.path for artifact in client.list_artifacts(run.info.run_id)}


def test_a_run_then_its_version(eagleray_home: Path, training_run: str) -> None:
    said: list[str] = []
    found = judged("run", NAME, said)
    accuracy = found.report.metrics.values["accuracy"]
    run, artifacts = in_mlflow(eagleray_home, found.report.evaluation_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_accuracy"] == accuracy
    assert run.data.tags["mlflow.parentRunId"] == training_run
    assert run.data.tags["eagleray.of_run"] == RUN
    assert {"report.html", "report.json", "confusion-matrix.png", "predictions.parquet"} <= artifacts

    made = publish(RUN, aliases=["candidate"], metrics={"before": 1.0}, say=said.append)
    assert made.metrics["test_accuracy"] == accuracy  # of the run's evaluation
    again = judged("version", f"{NAME}@candidate", said, part="validation")
    assert again.report.ids["version"] == made.ref
    assert again.report.model["Aliases"] == "candidate"
    kept = models().resolve(made.ref).metrics
    assert kept["validation_accuracy"] == again.report.metrics.values["accuracy"]
    assert kept["before"] == 1.0
    assert kept["test_accuracy"] == accuracy
    run, _ = in_mlflow(eagleray_home, again.report.evaluation_id)
    assert run.data.tags["eagleray.version"] == made.ref

    judged("version", made.ref, said, data={"kind": "digits", "split_seed": 5})
    kept = models().resolve(made.ref).metrics
    assert kept["test_accuracy"] == accuracy  # other data takes no metric's place
    assert "judged.test_accuracy" in kept
    assert not any("MLflow" in line for line in said)


@pytest.mark.usefixtures("training_run")
def test_unknown_models_name_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelNotFound, match=r"no model 'nowhere'"):
        judged("version", "nowhere", [])
    assert main([EXAMPLE, "--set", "model.kind=version", "--set", "model.ref=no where"]) == 2
    assert "error: model name 'no where' cannot be used" in capsys.readouterr().err


@pytest.mark.usefixtures("training_run")
def test_a_tracking_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of a run is kept and the trouble said; a version cannot be found without it."""
    monkeypatch.setenv("EAGLERAY_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    found = judged("run", NAME, said)
    assert found.folder.exists("report.json")
    assert any("MLflow" in line for line in said)
    with pytest.raises(ServiceError, match=r"MLflow at http://127.0.0.1:9 does not answer"):
        judged("version", NAME, said)
