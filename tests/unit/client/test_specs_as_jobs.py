"""Specs submitted as jobs, and what comes of them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from eagleray import specs
from eagleray.client import Client, JobClient, jobs
from eagleray.errors import AuthError, InputError, SpecError
from unit.client.stand_in import TOKEN, Ray

ROOT = Path(__file__).parents[3]
DIGITS = ROOT / "examples/train/digits.toml"


@pytest.fixture
def client(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobClient]:
    monkeypatch.setattr(jobs, "_POLL_S", 0.01)
    with JobClient(ray.address, TOKEN) as client:
        yield client


def sent(ray: Ray) -> tuple[str, dict[str, object], list[str]]:
    """Entry point, resolved spec and files of the last submission."""
    body = ray.submitted[-1]
    archive = zipfile.ZipFile(
        io.BytesIO(ray.packages[body["runtime_env"]["working_dir"].removeprefix("gcs://")])
    )
    return body["entrypoint"], json.loads(archive.read("spec.json")), archive.namelist()


def test_a_file_a_value_and_overrides(ray: Ray, client: JobClient) -> None:
    job_id = client.submit_spec(DIGITS, ["seed=11"])
    entrypoint, spec, _ = sent(ray)
    assert job_id.startswith("train-digits-")
    assert entrypoint == "python -m eagleray.workflows.train spec.json"
    assert spec["seed"] == 11
    client.submit_spec(specs.load(specs.TrainSpec, DIGITS, ["seed=12"]))
    assert sent(ray)[1]["seed"] == 12
    with pytest.raises(InputError, match="overrides are for the path of a spec"):
        client.submit_spec(specs.load(specs.TrainSpec, DIGITS), ["seed=1"])


def test_a_search_carries_its_bases_code(ray: Ray, client: JobClient, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n")
    base = DIGITS.read_text().replace('kind = "train"', f'kind = "train"\ncode = ["{tmp_path / "mine.py"}"]')
    (tmp_path / "base.toml").write_text(base)
    (tmp_path / "search.toml").write_text(
        'kind = "tune"\nname = "lr"\nbase = "base.toml"\n[space]\n'
        '"optimizer.lr" = { kind = "choice", values = [0.1, 0.01] }\n[budget]\nnum_trials = 2\n'
    )
    assert client.submit_spec(tmp_path / "search.toml").startswith("tune-lr-")
    entrypoint, spec, names = sent(ray)
    assert entrypoint == "python -m eagleray.workflows.tune spec.json"
    assert names == ["mine.py", "spec.json"]
    assert isinstance(spec["base"], dict)
    assert spec["base"]["code"] == ["mine.py"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'kind = "service"\nname = "digits"\n',
            "a service spec is no job; submit one of the kinds train, tune",
        ),
        ('kind = "train"\nnames = "x"\n', "unknown key 'names'; did you mean 'name'"),
    ],
)
def test_what_is_no_job(ray: Ray, client: JobClient, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "spec.toml").write_text(text)
    with pytest.raises(SpecError, match=message):
        client.submit_spec(tmp_path / "spec.toml")
    assert ray.submitted == []


def test_the_result_of_a_job(ray: Ray, client: JobClient, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"status": "FINISHED", "steps": 60}')
    ray.add(
        "done", "SUCCEEDED", f"run x\nfiles in /somewhere/else\n  files in {tmp_path}\n", driver_exit_code=0
    )
    found = client.result("done", timeout_s=60)
    assert (found.exit_code, found.is_success, found.folder) == (0, True, str(tmp_path))
    assert found.report == {"status": "FINISHED", "steps": 60}
    assert found.log.startswith("run x")


@pytest.mark.parametrize("log", ["no folder\n", "  files in s3://bucket/runs/x\n", "  files in /nowhere\n"])
def test_a_report_that_cannot_be_reached(ray: Ray, client: JobClient, log: str) -> None:
    ray.add("failed", "FAILED", log, driver_exit_code=3)
    found = client.result("failed", timeout_s=60)
    assert (found.exit_code, found.is_success, found.report) == (3, False, None)
    assert found.job.status == "FAILED"


def test_a_report_that_is_none(ray: Ray, client: JobClient, tmp_path: Path) -> None:
    for text in ("{", "[]"):
        (tmp_path / "report.json").write_text(text)
        ray.add("j", "SUCCEEDED", f"files in {tmp_path}\n")
        assert client.result("j", timeout_s=60).report is None


def test_jobs_of_the_cluster_that_the_environment_names(
    ray: Ray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ray.add("j", "SUCCEEDED")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray.address)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with Client("http://127.0.0.1:1") as client:
        assert [job.id for job in client.jobs.list()] == ["j"]
        assert client.jobs is client.jobs
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match="none: cannot be read"):
        JobClient.from_environment()
    (tmp_path / "binary").write_bytes(b"ab\xff\x00")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "binary"))
    with pytest.raises(AuthError, match=r"binary: holds no token: not text \(byte 2\)"):
        JobClient.from_environment()
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    with pytest.raises(InputError, match="set RAY_API_SERVER_ADDRESS"):
        JobClient.from_environment()
