"""The runs that MLflow knows, and those that only the storage has."""

from __future__ import annotations

import pytest

from eagleray.errors import ServiceError
from eagleray.packaging import Folder
from eagleray.registry.runs import RunRecord, TrackedRuns, main_metric
from eagleray.registry.tracking import Tracker
from support.object_store import free_port

OLD, NEW = "irises-20260131-120000-1f2e", "irises-20260131-130000-ab12"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, place):
    """Three runs in MLflow: two of a name, and a trial."""
    uri = f"sqlite:///{place}/mlflow.db"
    for run_id, kind, status in (
        (OLD, "train", "FAILED"),
        (NEW, "train", "FINISHED"),
        ("search-1-000", "trial", "KILLED"),
    ):
        name = "irises" if kind == "train" else "trialled"
        tracker = Tracker(uri, "eagleray", artifact_root=f"{place}/artifacts")
        tracker.start(run_id, params={"name": name}, tags={"eagleray.run": run_id, "eagleray.kind": kind})
        tracker.log({"loss": 0.5, "test_accuracy": 0.75}, 3)
        assert tracker.finish(status) == []
    evaluation = Tracker(uri, "eagleray", artifact_root=f"{place}/artifacts")
    evaluation.start("evaluation-1", params={}, tags={"eagleray.kind": "evaluate"})
    assert evaluation.finish("FINISHED") == []
    return TrackedRuns(uri, str(tmp_path_factory.mktemp("storage")))


def test_the_newest_come_first(runs):
    found = runs.newest(3)
    assert [(run.id, run.name, run.kind, run.status) for run in found] == [
        ("search-1-000", "trialled", "trial", "stopped"),
        (NEW, "irises", "train", "finished"),
        (OLD, "irises", "train", "failed"),
    ]
    assert (found[1].metric, found[1].value) == ("test_accuracy", 0.75)
    assert found[0].started_at >= found[1].started_at > 1e9
    assert runs.newest(1) == found[:1]


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        (OLD, [OLD]),
        ("irises", [NEW, OLD]),
        ("search-1-000", ["search-1-000"]),
        ("iris", []),
        ("evaluation-1", []),
        ("' or 1=1", []),
        ("", []),
        ("../x", []),
    ],
)
def test_a_wanted_one(runs, name, ids):
    assert [run.id for run in runs.newest(20, name)] == ids


def test_a_run_that_mlflow_never_saw_is_known_by_its_folder(place, tmp_path):
    folder = Folder(tmp_path).child("runs")
    run_id = "kept-20260131-120000-1f2e"
    report = {"status": "FINISHED", "started_at": 1000.5}
    folder.write_json(f"{run_id}/spec.json", {"name": "kept"})
    folder.write_json(
        f"{run_id}/report.json", {**report, "metrics": {"test_loss": 0.25, "test_mae": float("nan")}}
    )
    folder.write_bytes("kept-20260131-120000-ffff/spec.json", b"{")
    folder.write_json("kept-else-20260131-120000-1f2e/spec.json", {"name": "kept-else"})
    runs = TrackedRuns(f"sqlite:///{place}/mlflow.db", str(tmp_path))
    kept = RunRecord(run_id, "kept", "train", "finished", 1000.5, "test_loss", 0.25)
    assert runs.newest(20, "kept") == [kept]
    assert runs.newest(20, run_id) == [kept]


def test_a_server_that_is_away_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    runs = TrackedRuns(f"http://127.0.0.1:{free_port()}", str(tmp_path))
    with pytest.raises(ServiceError, match=r"MLflow at http://127.0.0.1:\d+ does not answer"):
        runs.newest(1)


@pytest.mark.parametrize(
    ("metrics", "found"),
    [
        ({}, (None, None)),
        ({"learning_rate": 0.1, "loss": 0.5}, ("loss", 0.5)),
        ({"loss": 0.5, "validation_loss": 0.6, "validation_accuracy": 0.9}, ("validation_accuracy", 0.9)),
        ({"test_loss": 0.7, "validation_accuracy": 0.9}, ("test_loss", 0.7)),
        ({"test_accuracy": float("nan"), "test_loss": 0.7}, ("test_loss", 0.7)),
    ],
)
def test_the_metric_that_says_most(metrics, found):
    assert main_metric(metrics) == found
