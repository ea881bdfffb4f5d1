"""The contract of the rooms (pyproject.toml), and standing rules that it cannot say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from unit.processes import ROOT, python

PACKAGE = ROOT / "platform/eagleray"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def linted(*arguments: str, cwd: Path = ROOT) -> tuple[int, str]:
    code = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    finished = python("-c", code, "--no-cache", "--no-logo", *arguments, cwd=cwd)
    return finished.returncode, finished.stdout + finished.stderr


def test_every_room_imports_lower_floors_only() -> None:
    returncode, output = linted()
    assert returncode == 0, output
    assert "0 broken" in output


@pytest.mark.parametrize(
    ("room", "line", "contract"),
    [
        ("specs", "import eagleray.client", "lower floors only"),
        ("client", "import eagleray.metrics", "The SDK takes nothing"),
        ("specs", "import torch", "neither ray nor torch"),
        ("capacity", "import ray", "neither ray nor torch"),
        ("attic", "", "exhaustive"),
    ],
)
def test_the_contract_notices(tmp_path: Path, room: str, line: str, contract: str) -> None:
    """A copy of the light rooms with one wrong line: the contract really bites."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    package = tmp_path / "eagleray"
    for name in ("errors.py", "metrics.py", "__init__.py"):
        package.mkdir(exist_ok=True)
        shutil.copy(PACKAGE / name, package)
    for name in ("specs", "client", "capacity", "protocol"):
        shutil.copytree(PACKAGE / name, package / name)
    (package / room).mkdir(exist_ok=True)
    (package / room / "__init__.py").touch()
    (package / room / "wrong.py").write_text(line + "\n")
    returncode, output = linted(cwd=tmp_path)
    assert returncode != 0, output
    assert contract in output


def uses(pattern: str, allowed: str) -> list[str]:
    """Files of the package with a line of code that matches, except those whose path matches `allowed`."""
    found = []
    for path in SOURCES:
        name = path.relative_to(PACKAGE).as_posix()
        if re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE) and not re.search(
            allowed, name
        ):
            found.append(name)
    return found


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r"^\s*(?:import|from)\s+ray(?:\.\w+)*\._(?:private|internal)\b", r"_ray260\.py$"),
        (r"^\s*(?:import|from)\s+ray\.data\b", r"^workflows/prepare\.py$"),
        (r"\.register_comm_hook\(", r"^compression/hook\.py$"),
        (r"\b(?:prepare_model|ray\.train\.torch\.get_device)\(", r"^$"),
        (r"^\s*(?:import|from)\s+mlflow\b", r"^(?:registry|serving)/"),
        (r"\bpickle\.loads?\(", r"^$"),
    ],
    ids=["ray internals", "ray data", "comm hook", "prepare_model", "mlflow", "pickle"],
)
def test_a_standing_rule(pattern: str, allowed: str) -> None:
    assert uses(pattern, allowed) == []
