from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eagleray.compression import kernels
from integration.ranks.crews import exact
from integration.ranks.runs import weights
from support.crew import crew


@pytest.fixture(scope="session", autouse=True)
def _compiled():
    """On a machine that has not compiled them yet: the tests are of the compiled kernels."""
    kernels.wait()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a run of `exact()` by one worker from start to end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with crew(exact(), str(folder)) as run:
        run.form(run.start(1))
        run.outcome()
    return weights(folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the run "r", in a storage of its own."""
    monkeypatch.setenv("EAGLERAY_STORAGE", str(tmp_path))
    found = tmp_path / "runs" / "r"
    found.mkdir(parents=True)
    return found
