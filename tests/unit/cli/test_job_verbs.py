"""`train`, `tune`, `evaluate`, `publish` as jobs of the stand-in for Ray's job API."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unit.cli.conftest import Run
from unit.client import stand_in
from unit.processes import ROOT

TUNE, EVALUATE = str(ROOT / "examples/tune/digits.toml"), str(ROOT / "examples/evaluate/digits.toml")
TRAIN = str(ROOT / "examples/train/digits.toml")
RUN = "digits-20260131-120000-1f2e"


@pytest.fixture
def prints(ray: stand_in.Ray, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what every job prints, and how it ends."""

    def prints(log: str, status: str = "SUCCEEDED", **more: Any) -> None:
        add = ray.add

        def added(job_id: str, *_: Any, **__: Any) -> None:
            add(job_id, "RUNNING", log, ends_as=status, **more)

        monkeypatch.setattr(ray, "add", added)

    return prints


def spec_of(ray: stand_in.Ray) -> dict[str, Any]:
    """What the only job carries."""
    [body] = ray.submitted
    content = ray.packages[body["runtime_env"]["working_dir"].removeprefix("gcs://")]
    return json.loads(zipfile.ZipFile(io.BytesIO(content)).read("spec.json"))


def test_a_search_carries_its_base(run: Run, ray: stand_in.Ray) -> None:
    assert run("tune", TUNE, "--set", "seed=5").code == 0
    spec = spec_of(ray)
    assert (spec["seed"], spec["base"]["kind"], spec["base"]["name"]) == (5, "train", "digits")
    assert ray.submitted[0]["entrypoint"] == "python -m eagleray.workflows.tune spec.json"


def test_an_evaluation_carries_its_spec(run: Run, ray: stand_in.Ray) -> None:
    assert run("evaluate", EVALUATE, "--set", f"model.ref={RUN}").code == 0
    assert spec_of(ray)["model"]["ref"] == RUN
    assert ray.submitted[0]["entrypoint"] == "python -m eagleray.workflows.evaluate spec.json"


@pytest.mark.parametrize(
    ("arguments", "log", "hint"),
    [
        (["train", TRAIN], f"run {RUN}\n", f"next: eagleray publish {RUN}\n"),
        (["resume", RUN], f"run {RUN}\n", f"next: eagleray publish {RUN}\n"),
        (
            ["tune", TUNE],
            f"search s-1\n  its run {RUN}: eagleray publish {RUN} --search s-1\n  files in /s\n",
            f"next: eagleray publish {RUN} --search s-1\n",
        ),
        (["tune", "--resume", "s-1"], "search s-1\n", ""),
        (["evaluate", EVALUATE], f"evaluation e-1: run {RUN}\n", f"next: eagleray publish {RUN}\n"),
        (
            ["evaluate", EVALUATE],
            "evaluation e-1: digits/versions/3\n",
            "next: eagleray models show digits/versions/3\n",
        ),
        (["evaluate", EVALUATE], "evaluation e-1: package 0123456789abcdef\n", ""),
        (
            ["publish", RUN, "--name", "digits"],
            "published digits/versions/3: test_accuracy 0.9\n",
            "next: eagleray models show digits/versions/3\n"
            'next: eagleray deploy SPEC   (a spec with kind = "service", name = "digits")\n',
        ),
    ],
)
def test_a_verb_says_what_comes_next(
    arguments: list[str], log: str, hint: str, run: Run, ray: stand_in.Ray, prints: Callable[..., None]
) -> None:
    prints(log)
    said = run(*arguments)
    [job_id] = ray.jobs
    assert (said.code, said.out, said.err) == (0, f"job {job_id}\n{log}", hint)


def test_as_json_it_is_one_document(run: Run, prints: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"status": "FINISHED"}')
    log = f"run {RUN}\nrun {RUN}: finished after 1 s\n  files in {tmp_path}\n"
    prints(log)
    said = run("train", TRAIN, "--json")
    assert said.err.endswith(log)
    assert {key: said.json[key] for key in ("exit_code", "id", "folder", "report", "version")} == {
        "exit_code": 0,
        "id": RUN,
        "folder": str(tmp_path),
        "report": {"status": "FINISHED"},
        "version": None,
    }
    assert said.json["job"]["status"] == "SUCCEEDED"


def test_a_published_version_as_json(run: Run, prints: Callable[..., None]) -> None:
    prints("published digits/versions/3 (candidate)\n  package 0123 in /s\n")
    assert run("publish", RUN, "--alias", "candidate", "--json").json["version"] == "digits/versions/3"


def test_a_failed_job_as_json(run: Run, prints: Callable[..., None]) -> None:
    prints("error: no run\n", "FAILED", driver_exit_code=2)
    said = run("publish", RUN, "--json")
    assert (said.code, said.json["exit_code"], said.json["version"]) == (2, 2, None)
    assert "next:" not in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune"], "give a SPEC (with --set, if need be), or --resume SEARCH"),
        (["tune", TUNE, "--resume", "s"], "or --resume SEARCH"),
        (["tune", "--resume", "a/b"], "search 'a/b': expected the id of a search"),
        (["tune", TUNE, "--set", 'space.nope={kind="choice",values=[1]}'], "space.nope: unknown key 'nope'"),
        (["tune", TUNE, "--set", "budget.num_trials=0"], "budget.num_trials"),
        (["tune", TRAIN], "kind: is a train spec; give a tune spec here"),
        (["evaluate", EVALUATE, "--set", "part=all"], "is no test"),
        (["publish", "../x"], "run '../x': expected the id of a run"),
        (["publish", RUN, "--name", "a#b"], "model name 'a#b' cannot be used"),
        (["publish", RUN, "--alias", "latest"], "alias 'latest' cannot be used"),
    ],
)
def test_wrong_input_starts_no_job(arguments: list[str], message: str, run: Run, ray: stand_in.Ray) -> None:
    said = run(*arguments)
    assert said.code == 2, said
    assert message in said.err
    assert not ray.jobs


def test_logs_and_stop_as_json(run: Run, ray: stand_in.Ray) -> None:
    ray.add("j", "RUNNING", f"run {RUN}\n", ends_as="SUCCEEDED")
    found = run("logs", "j", "--json").json
    assert (found["job"]["status"], found["id"], found["log"]) == ("RUNNING", RUN, f"run {RUN}\n")
    followed = run("logs", "-f", "j", "--json")
    assert (followed.json["exit_code"], followed.err) == (0, f"run {RUN}\n")
    assert run("stop", "j", "--json").json["was_running"] is False
