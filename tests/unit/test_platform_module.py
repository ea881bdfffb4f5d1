"""`platform/` is a source root, so `import platform` must go on meaning the standard library's module."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from unit.processes import ROOT, python

PROBE = "import platform, uuid, eagleray; print(platform.__file__, platform.system(), eagleray.__file__)"


@pytest.mark.parametrize("pythonpath", ["", ".", "platform", ".:platform"])
def test_platform_is_the_standard_librarys(pythonpath: str) -> None:
    finished = python("-c", PROBE, PYTHONPATH=pythonpath)
    assert finished.returncode == 0, finished.stderr
    file, system, package = finished.stdout.split()
    assert not Path(file).is_relative_to(ROOT / "platform")
    assert system == "Linux"
    assert Path(package) == ROOT / "platform/eagleray/__init__.py"


def test_the_source_root_is_no_package() -> None:
    assert not (ROOT / "platform/__init__.py").exists()
    assert [path.name for path in (ROOT / "platform").glob("*.py")] == []


def test_no_job_has_the_name_of_a_standard_module() -> None:
    names = {path.stem for path in (ROOT / "jobs").iterdir()}
    assert {"train", "resume"} <= names
    assert names.isdisjoint(sys.stdlib_module_names)
