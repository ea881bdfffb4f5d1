"""What a job carries."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from eagleray import specs
from eagleray.client import (
    Job,
    JobClient,
    JobResult,
    pack,
    submit_publish,
    submit_resume,
    submit_spec,
    submit_tune_resume,
)
from eagleray.client.submission import eagleray_package
from eagleray.errors import InputError
from unit.client.stand_in import TOKEN, Ray

ROOT = Path(__file__).parents[3]


def names(content: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(content)).namelist()


def test_a_folder_travels_without_caches(tmp_path: Path) -> None:
    for name in (
        "m/__init__.py",
        "m/deep/x.py",
        "m/__pycache__/x.pyc",
        "m/.git/HEAD",
        "m/.venv/a",
        "m/y.pyc",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    (tmp_path / "m" / "dangling").symlink_to("nowhere")
    assert names(pack({"m": tmp_path / "m", "s.json": b"{}"}).content) == [
        "m/__init__.py",
        "m/deep/x.py",
        "s.json",
    ]


def test_bytes_do_not_depend_on_times_or_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    first = pack({"a": tmp_path / "a", "b": tmp_path / "b"})
    os.utime(tmp_path / "a", (1, 1))
    assert pack({"b": tmp_path / "b", "a": tmp_path / "a"}) == first


def test_too_much_names_the_largest(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(bytes(3 * 2**20))
    with pytest.raises(
        InputError, match=r"3\.0 MiB, over the limit of 2\.0 MiB \(largest: m/data\.bin, 3\.0 MiB\)"
    ):
        pack({"m": tmp_path, "s": b"x"}, limit_bytes=2 * 2**20)


def test_our_package_travels_as_one_importable_folder() -> None:
    found = names(eagleray_package().content)
    assert {"eagleray/__init__.py", "eagleray/specs/base.py"} <= set(found)
    assert all(name.startswith("eagleray/") and "__pycache__" not in name for name in found)


def test_a_run_carries_its_resolved_spec_and_its_code(ray: Ray, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def model(): ...\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "__init__.py").touch()
    code = json.dumps([str(tmp_path / "mine.py"), str(tmp_path / "lib")])
    spec = specs.load(specs.TrainSpec, ROOT / "examples/train/digits.toml", [f"code={code}", "seed=11"])
    with JobClient(ray.address, TOKEN) as client:
        job_id = submit_spec(client, spec)
    [body] = ray.submitted
    assert body["submission_id"] == job_id
    assert job_id.startswith("train-digits-")
    assert body["entrypoint"] == "python -m eagleray.workflows.train spec.json"
    assert body["entrypoint_resources"] == {"node:__internal_head__": 0.001}
    content = ray.packages[body["runtime_env"]["working_dir"].removeprefix("gcs://")]
    assert names(content) == ["lib/__init__.py", "mine.py", "spec.json"]
    zipfile.ZipFile(io.BytesIO(content)).extractall(tmp_path / "job")
    there = specs.load(specs.TrainSpec, tmp_path / "job" / "spec.json")
    assert there.code == (str(tmp_path / "job" / "mine.py"), str(tmp_path / "job" / "lib"))
    assert there.model_copy(update={"code": spec.code}) == spec


def test_two_paths_of_one_name_are_refused(ray: Ray, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.py").touch()
    code = json.dumps([str(tmp_path / "a/m.py"), str(tmp_path / "b/m.py")])
    spec = specs.load(specs.TrainSpec, ROOT / "examples/train/digits.toml", [f"code={code}"])
    with (
        JobClient(ray.address, TOKEN) as client,
        pytest.raises(InputError, match=r"two paths are named 'm\.py'"),
    ):
        submit_spec(client, spec)


def test_resume_names_the_run(ray: Ray) -> None:
    with JobClient(ray.address, TOKEN) as client:
        submit_resume(client, "digits-20260131-120000-1f2e")
        with pytest.raises(InputError, match="expected the id of a run"):
            submit_resume(client, "a; rm -rf x")
    [body] = ray.submitted
    assert body["entrypoint"] == "python -m eagleray.workflows.resume digits-20260131-120000-1f2e"
    assert "working_dir" not in body["runtime_env"]


def test_publish_says_what_and_under_which_names(ray: Ray) -> None:
    run = "digits-20260131-120000-1f2e"
    with JobClient(ray.address, TOKEN) as client:
        job_id = submit_publish(
            client, run, name="digits", aliases=["a", "b"], search="s-1", parent="digits@production"
        )
        submit_publish(client, run)
    assert [body["metadata"]["eagleray_name"] for body in ray.submitted] == ["digits", "digits"]
    assert re.fullmatch(r"publish-digits-\d{8}-\d{6}-[0-9a-f]{4}", job_id)
    assert [body["entrypoint"] for body in ray.submitted] == [
        f"python -m eagleray.workflows.publish {run} --name digits --alias a --alias b --search s-1 "
        "--parent digits@production",
        f"python -m eagleray.workflows.publish {run}",
    ]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"run": "../x"}, "run '../x': expected the id of a run"),
        ({"run": "r", "name": "a#b"}, "model name 'a#b' cannot be used"),
        ({"run": "r", "name": "n" * 300}, "model name 'n{57}'… .300 characters. cannot be used"),
        ({"run": "r", "aliases": ["7"]}, "alias '7' cannot be used"),
        ({"run": "r", "search": "a b"}, "search 'a b': expected the id of a search"),
        ({"run": "r", "parent": "digits/3"}, "model name 'digits/3' cannot be used"),
    ],
)
def test_names_that_cannot_be_are_refused_before_a_job(asked: dict[str, Any], message: str, ray: Ray) -> None:
    with JobClient(ray.address, TOKEN) as client, pytest.raises(InputError, match=message):
        submit_publish(client, asked.pop("run"), **asked)
    assert not ray.submitted


def test_a_search_goes_on_by_its_id(ray: Ray) -> None:
    with JobClient(ray.address, TOKEN) as client:
        submit_tune_resume(client, "digits-1")
        with pytest.raises(InputError, match="expected the id of a search"):
            submit_tune_resume(client, "--spec")
    [body] = ray.submitted
    assert body["entrypoint"] == "python -m eagleray.workflows.tune --resume digits-1"


def test_an_evaluation_on_a_gpu_goes_where_there_is_one(ray: Ray) -> None:
    spec = specs.load(specs.EvaluateSpec, ROOT / "examples/evaluate/digits.toml", ["gpus=1"])
    with JobClient(ray.address, TOKEN) as client:
        submit_spec(client, spec)
    [body] = ray.submitted
    assert body["entrypoint_num_gpus"] == 1
    assert "entrypoint_resources" not in body


@pytest.mark.parametrize(
    ("log", "made", "folder", "version"),
    [
        ("run r-1\nstep\nrun r-1: finished after 3 s\n  files in /s/runs/r-1\n", "r-1", "/s/runs/r-1", None),
        ("search s.1\nfiles in s3://b/s.1\n", "s.1", "s3://b/s.1", None),
        ("evaluation e-1: run r-1\nreport /s/e-1/report.html\n", "e-1", "/s/e-1", None),
        ("published digits/versions/3 (a): test_accuracy 1\n", None, None, "digits/versions/3"),
        ("error: none\n", None, None, None),
    ],
)
def test_what_a_job_made_is_read_from_its_log(
    log: str, made: str | None, folder: str | None, version: str | None
) -> None:
    result = JobResult(Job("j", "SUCCEEDED", "python"), log)
    assert (result.made, result.folder, result.version) == (made, folder, version)
