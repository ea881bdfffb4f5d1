"""A user's own modules: kept with the run, imported by its ranks."""

import sys

import pytest

from eagleray.packaging import Folder
from eagleray.training.code import import_code, store_code


@pytest.mark.parametrize("url", ["{tmp}/run", "memory://code-test/run"])
def test_files_and_packages_are_importable_from_the_runs_folder(tmp_path, monkeypatch, url):
    (tmp_path / "my_loss_of_ours.py").write_text("VALUE = 7\n")
    package = tmp_path / "my_package_of_ours"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("VALUE = 8\n")
    (package / "__pycache__" / "inner.pyc").write_bytes(b"\0")
    (package / "venv").mkdir()
    (package / "venv" / "installed.py").touch()
    run = Folder(url.format(tmp=tmp_path))
    store_code([str(tmp_path / "my_loss_of_ours.py"), str(package)], run)
    assert sorted(run.child("code").files()) == [
        "my_loss_of_ours.py", "my_package_of_ours/__init__.py", "my_package_of_ours/inner.py"
    ]  # fmt: skip

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    import_code(run)
    import my_loss_of_ours
    import my_package_of_ours.inner

    assert (my_loss_of_ours.VALUE, my_package_of_ours.inner.VALUE) == (7, 8)
    for name in ("my_loss_of_ours", "my_package_of_ours", "my_package_of_ours.inner"):
        del sys.modules[name]


def test_a_run_without_code_changes_nothing(tmp_path):
    before = list(sys.path)
    import_code(Folder(str(tmp_path)))
    assert sys.path == before
