"""docs/sdk.md: every block runs, and every public method is in one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from eagleray.client import (
    Admin,
    AsyncClient,
    AsyncTextStream,
    Client,
    JobClient,
    JobResult,
    Prediction,
    TextStream,
    jobs,
)
from support.blocks import blocks, run
from support.serving import pretend, serving
from unit.client.stand_in import TOKEN, Ray

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/sdk.md"


def test_the_page_runs_from_top_to_bottom(
    ray: Ray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(jobs, "_POLL_S", 0.01)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with serving(pretend(both_scopes=True)) as ingress:
        monkeypatch.setenv("EAGLERAY_URL", ingress.url)
        monkeypatch.setenv("EAGLERAY_KEY", ingress.admin_key)
        ingress.set(is_key_needed_for_infer=True)
        names = run(PAGE)
    assert names["prediction"].labels == ["0", "2", "4"]
    assert names["generation"].text == "def def def def "
    assert names["result"].is_success
    assert ingress.admin.promoted == [("digits", 2, "candidate")]
    assert [spec.get("version") for spec in ingress.admin.deployed] == [2, "latest"]
    assert ray.jobs.keys() == {names["job"]}
    printed = capsys.readouterr().out
    assert "no model 'digit' is deployed" in printed
    assert "expected [-1, 1, 8, 8]" in printed


@pytest.mark.parametrize(
    "kind", [Client, AsyncClient, Admin, TextStream, AsyncTextStream, JobClient, JobResult, Prediction]
)
def test_every_public_name_has_an_example(kind: Any) -> None:
    """(AsyncAdmin has the methods of Admin: test_client.py holds it to that.)"""
    code = "\n".join(text for _, text in blocks(PAGE))
    used = set(re.findall(r"\.(\w+)", code)) | {"log", "job", "values", "outputs"}
    public = {name for name in vars(kind) if name[0] != "_"}
    assert public - used == set()
