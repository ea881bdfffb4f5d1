"""`train`, `tune`, `evaluate`, `publish` as jobs of the stand-in for Ray's job API."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eagleray.errors import ServiceError
from support.serving import Pretend
from unit.cli.conftest import Run
from unit.cli.test_place import local
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


NEWEST = "digits-20260131-120009-1f2e"
"""The newest run that the pretending ingress knows."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["publish", "digits-20260131-120009-1f2f"],
            "no run 'digits-20260131-120009-1f2f' (did you mean digits-20260131-120009-1f2e or digits-",
        ),
        (
            ["publish", "other"],
            "no run 'other'; the newest: digits-20260131-120009-1f2e, digits-20260131-120008-1f2e, "
            "digits-20260131-120007-1f2e; `eagleray runs list` shows more",
        ),
        (["publish", "digits"], "no run 'digits'; "),
        (["publish", NEWEST, "--parent", "nope@best"], "no model 'nope'; there are: digits"),
        (
            ["publish", NEWEST, "--parent", "digits@best"],
            "model 'digits' has no alias 'best'; versions: 1, 2",
        ),
        (["resume", "other"], "no run 'other'; the newest: "),
        (
            ["evaluate", EVALUATE, "--set", "model.ref=digit"],
            "no run 'digit' (did you mean digits?); the newest: ",
        ),
        (
            ["evaluate", EVALUATE, "--set", "model.kind=version", "--set", "model.ref=digits/versions/9"],
            "model 'digits' has no version 9; versions: 1, 2",
        ),
        (
            ["evaluate", EVALUATE, "--set", "model.kind=version", "--set", "model.ref=nope"],
            "no model 'nope'; there are: digits",
        ),
    ],
)
def test_what_is_not_there_costs_no_job(
    arguments: list[str], message: str, run: Run, ray: stand_in.Ray, ingress: Pretend
) -> None:
    said = run(*arguments)
    assert (said.code, said.out, len(said.err.splitlines())) == (2, "", 1), said
    assert message in said.err
    assert not ray.jobs


def test_where_nothing_was_trained_that_is_said(run: Run, ray: stand_in.Ray, ingress: Pretend) -> None:
    ingress.admin.runs_known.clear()
    said = run("publish", RUN)
    assert said.code == 2
    assert f"no run '{RUN}': there is none yet; `eagleray train SPEC` makes one" in said.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["publish", NEWEST, "--parent", "digits@candidate"],
        ["resume", NEWEST],
        ["evaluate", EVALUATE],
        ["evaluate", EVALUATE, "--set", f"model.ref={NEWEST}"],
        ["evaluate", EVALUATE, "--set", "model.kind=version", "--set", "model.ref=digits@candidate"],
        ["evaluate", EVALUATE, "--set", "model.kind=package", "--set", "model.ref=s3://else/where"],
    ],
)
def test_what_is_there_is_asked_for(
    arguments: list[str], run: Run, ray: stand_in.Ray, ingress: Pretend
) -> None:
    assert run(*arguments).code == 0
    assert len(ray.jobs) == 1


@pytest.mark.parametrize("trouble", ["away", "no admin key", "failing", "nothing there", "other cluster"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["publish", RUN],
        ["evaluate", EVALUATE, "--set", "model.kind=version", "--set", "model.ref=nope"],
    ],
)
def test_an_ingress_that_cannot_say_leaves_it_to_the_job(
    trouble: str,
    arguments: list[str],
    run: Run,
    ray: stand_in.Ray,
    ingress: Pretend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    match trouble:
        case "away":
            monkeypatch.setenv("EAGLERAY_URL", "http://127.0.0.1:1")
        case "no admin key":
            monkeypatch.setenv("EAGLERAY_KEY", ingress.infer_key)
        case "failing":
            ingress.admin.error = ServiceError("MLflow does not answer")
        case "nothing there":
            monkeypatch.setenv("EAGLERAY_URL", ingress.url + "/prefix")
        case "other cluster":  # the jobs are another's than those of the local cluster
            monkeypatch.delenv("EAGLERAY_URL")
            local("local", ingress.url, key=ingress.admin_key)
    assert run(*arguments).code == 0
    assert len(ray.jobs) == 1


def test_a_local_cluster_is_asked_by_its_name_and_by_its_dashboard(
    run: Run, ray: stand_in.Ray, ingress: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EAGLERAY_URL")
    monkeypatch.delenv("EAGLERAY_KEY")
    local("mine", ingress.url, key=ingress.admin_key, dashboard=ray.address)
    assert "no run 'other'; the newest: " in run("publish", "other").err
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    assert "no run 'other'; the newest: " in run("publish", "other", "--cluster", "mine").err
    assert not ray.jobs
