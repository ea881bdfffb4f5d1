import json
import os
import subprocess
import sys
import threading
import time

import pytest

from eagleray.registry import tracking
from eagleray.registry.tracking import Tracker


def tracker(place, **options):
    return Tracker(f"sqlite:///{place}/mlflow.db", "runs", artifact_root=f"{place}/artifacts", **options)


def client(place):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")


def test_a_run_is_written_and_gone_on_with(place, tmp_path, monkeypatch):
    may_connect, connect = threading.Event(), tracking.connect
    monkeypatch.setattr(tracking, "connect", lambda uri: (may_connect.wait(60), connect(uri))[1])
    first = tracker(place)
    first.start("digits-1", params={"a": {"b": [1, 2]}, "long": "x" * 9000}, tags={"kind": "train"})
    for step in range(1500):
        first.log({"loss": 1 / (1 + step)}, step)
    for chosen in ("int8", "bf16"):
        first.tag("eagleray.compression", chosen)
    assert first.known_run_id is None, "it has waited for MLflow"
    may_connect.set()
    (tmp_path / "curves.png").write_bytes(b"png")
    first.artifact(tmp_path / "curves.png", "plots")
    assert first.finish("FAILED") == []

    again = tracker(place)
    again.start("digits-1", params={"a": {"b": [3]}, "new": None}, tags={}, run_id=first.run_id)
    again.log({"loss": 0.0, "bad": float("nan")}, 2000)
    assert again.finish("FINISHED") == []
    assert again.run_id == first.run_id

    run = client(place).get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "digits-1"
    assert run.data.params == {"a.b": "[1, 2]", "long": "x" * 6000, "new": "null"}
    assert run.data.tags["kind"] == "train"
    assert run.data.tags["eagleray.compression"] == "bf16"
    assert run.data.tags["changed.a.b"] == "[3]"
    assert len(client(place).get_metric_history(first.run_id, "loss")) == 1501
    assert (place / "artifacts" / first.run_id / "artifacts/plots/curves.png").read_bytes() == b"png"


def test_a_run_that_mlflow_lost_is_made_anew(place):
    lost = tracker(place)
    lost.start("digits-2", params={}, tags={}, run_id="0" * 32)
    assert lost.finish("FINISHED") == []
    assert lost.run_id not in (None, "0" * 32)


def test_a_server_that_is_away_holds_nothing_up(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    warned = []
    away = Tracker("http://127.0.0.1:9", "runs", spill=tmp_path / "spill.jsonl", warn=warned.append)
    away.start("digits-3", params={}, tags={})
    away.log({"loss": 0.5}, 7)
    away.artifact(tmp_path / "report.json")
    troubles = away.finish("FINISHED")
    assert away.run_id is None
    assert len(warned) == 1
    assert "127.0.0.1:9" in warned[0]
    assert "the run goes on" in warned[0]
    assert troubles[1:] == [
        f"1 metric values, kept in {tmp_path / 'spill.jsonl'}",
        "artifact report.json",
    ]
    kept = json.loads((tmp_path / "spill.jsonl").read_text())
    assert (kept["name"], kept["value"], kept["step"]) == ("loss", 0.5, 7)


def test_a_server_that_dies_and_comes_back_gets_everything(place, monkeypatch):
    warned = []
    back = tracker(place, warn=warned.append, flush_s=0.05, retry_s=0.05)
    back.start("digits-4", params={}, tags={})
    assert back.run_id
    healthy, failures = back._client.log_batch, ["refused", "refused"]

    def dying(*arguments, **options):
        if failures:
            raise ConnectionError(failures.pop())
        return healthy(*arguments, **options)

    monkeypatch.setattr(back._client, "log_batch", dying)
    for step in range(3):
        back.log({"loss": float(step)}, step)
    deadline = time.monotonic() + 60
    while failures or back._points:
        assert time.monotonic() < deadline, (failures, warned, back._points)
        time.sleep(0.02)
    assert back.finish("FINISHED") == []
    assert len(warned) == 1
    assert len(client(place).get_metric_history(back.run_id, "loss")) == 3


def test_a_store_that_hangs_is_given_up(place, monkeypatch):
    hung = tracker(place, flush_s=0.02)
    hung.start("digits-5", params={}, tags={})
    assert hung.run_id
    answers = threading.Event()
    monkeypatch.setattr(hung._client, "set_terminated", lambda *_: answers.wait(60))
    assert "did not answer for 0 s" in hung.finish("FINISHED", timeout_s=0.3)[0]
    answers.set()


BEGIN = """
import sys
from eagleray.registry.tracking import Tracker
tracker = Tracker(f"sqlite:///{sys.argv[1]}/new/mlflow.db", "runs", artifact_root=sys.argv[1])
tracker.start(sys.argv[2], params={"a": 1}, tags={})
tracker.log({"loss": 1.0}, 1)
print(tracker.run_id, tracker.finish("FINISHED"))
"""


@pytest.mark.slow
def test_two_processes_make_one_new_file(tmp_path):
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", BEGIN, tmp_path, name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": "platform"},
        )
        for name in ("one", "two", "three")
    ]
    answers = [starter.communicate(timeout=120) for starter in starters]
    assert [answer[0].split(maxsplit=1)[1].strip() for answer in answers] == ["[]"] * 3, answers
    assert [answer[1] for answer in answers] == [""] * 3
    assert len({answer[0].split()[0] for answer in answers}) == 3
