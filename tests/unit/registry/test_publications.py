"""What killed publishers left is removed by a later one; what goes on, or is another's, never."""

from __future__ import annotations

import datetime
import os
import uuid

import fsspec
import pytest

from eagleray.packaging import Folder
from eagleray.registry import publications
from eagleray.registry.publications import ABANDONED_S, Publications

URI = "http://mlflow:5000"


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path):
    place = str(tmp_path) if request.param == "disk" else f"memory://{uuid.uuid4().hex}"
    return Folder(f"{place}/models/digits")


def age(folder, seconds, *names):
    """Let files be as old by the storage's own clock."""
    for name in names:
        if folder.local_path:
            then = os.stat(folder.local_path / name).st_mtime - seconds
            os.utime(folder.local_path / name, (then, then))
        else:
            file_system, path = fsspec.url_to_fs(f"{folder.url}/{name}")
            file_system.store[path].modified -= datetime.timedelta(seconds=seconds)


def killed(folder, name, *, uri=URI, files=("model.json",), seconds=ABANDONED_S + 60):
    """A publisher that was killed so long ago, when it had written these files."""
    Publications(folder, uri).begin(name)
    for file in files:
        folder.write_bytes(f"{name}/{file}", b"x")
    age(folder, seconds, f".publishing-{name}", *(f"{name}/{file}" for file in files))


def clean(folder, known=()):
    mine = Publications(folder, URI)
    package = mine.begin("mine")
    package.write_bytes("model.json", b"x")
    removed = mine.clean("mine", known)
    mine.end("mine")
    assert package.files() == ["model.json"]
    return removed


def test_what_killed_publishers_left_is_removed(folder):
    killed(folder, "half")
    killed(folder, "whole", files=("model.json", "code/net.py", "COMMIT"))
    killed(folder, "nothing", files=())
    assert sorted(clean(folder)) == ["half", "nothing", "whole"]
    assert folder.list() == ["mine"]


def test_what_was_written_aside_goes_too(folder):
    killed(folder, "half", files=())
    folder.write_bytes(".tmp-half-01234567/model.json", b"x")
    age(folder, ABANDONED_S + 60, ".tmp-half-01234567/model.json")
    assert clean(folder) == ["half"]
    assert folder.list() == ["mine"]


def test_a_publication_that_goes_on_stays(folder):
    killed(folder, "slow", seconds=ABANDONED_S - 60)
    killed(folder, "long")  # began long ago, and has just written one of its files
    folder.write_bytes("long/weights.safetensors", b"x")
    killed(folder, "aside", files=())
    folder.write_bytes(".tmp-aside-01234567/model.json", b"x")
    Publications(folder, URI).begin("begun")
    before = folder.files()
    assert clean(folder) == []
    assert set(folder.files()) == {*before, "mine/model.json"}


def test_packages_of_versions_stay(folder):
    killed(folder, "version")  # killed after its version was made
    folder.write_bytes("older/model.json", b"x")
    age(folder, ABANDONED_S + 60, "older/model.json")
    assert clean(folder, known=["version"]) == []
    assert folder.list() == ["mine", "older", "version"]


@pytest.mark.parametrize("uri", ["http://other:5000", "sqlite:////home/mlflow.db"])
def test_what_another_registry_publishes_there_stays(folder, uri):
    killed(folder, "theirs", uri=uri)
    assert clean(folder) == []
    assert folder.list() == [".publishing-theirs", "mine", "theirs"]


def test_a_password_in_the_address_does_not_get_into_the_storage(folder):
    Publications(folder, "http://me:hunter2@mlflow:5000").begin("mine")
    assert b"hunter2" not in folder.read_bytes(".publishing-mine")


def test_files_of_the_same_path_are_not_one_registry(folder, monkeypatch):
    killed(folder, "theirs", uri="sqlite:////root/mlflow.db")
    monkeypatch.setattr(publications.socket, "gethostname", lambda: "another")
    mine = Publications(folder, "sqlite:////root/mlflow.db")
    mine.begin("mine")
    assert mine.clean("mine", []) == []
