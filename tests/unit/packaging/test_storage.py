import errno
import os
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from eagleray.packaging import Folder, storage


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path):
    url = str(tmp_path / "run") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/run"
    return Folder(url)


def test_what_is_written_is_read(folder, tmp_path):
    assert folder.list() == []
    assert not folder.exists()
    folder.write_json("spec.json", {"a": [1]})
    folder.write_bytes("deep/er/file", b"x" * 5)
    (tmp_path / "source").write_bytes(b"up")
    address = folder.upload(tmp_path / "source", "curves.png")
    assert folder.read_json("spec.json") == {"a": [1]}
    assert folder.child("deep").read_bytes("er/file") == b"x" * 5
    assert address == f"{folder.url}/curves.png"
    assert folder.read_bytes("curves.png") == b"up"
    assert folder.list() == ["curves.png", "deep", "spec.json"]
    assert folder.files() == ["curves.png", "deep/er/file", "spec.json"]
    assert Folder(folder.url).exists("deep/er/file")
    folder.remove("deep")
    folder.remove("never was")
    assert folder.list() == ["curves.png", "spec.json"]


def test_a_missing_file_is_not_found(folder):
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("nothing")


def test_a_file_is_created_once(folder):
    assert folder.create("drivers/1.json", b"first")
    assert not folder.create("drivers/1.json", b"second")
    assert folder.read_bytes("drivers/1.json") == b"first"
    assert folder.files() == ["drivers/1.json"]


def test_of_many_that_create_at_once_one_does(tmp_path):
    folder = Folder(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        for number in range(20):
            name = f"{number}.json"
            won = list(threads.map(lambda i, name=name: folder.create(name, b"%d" % i), range(8)))
            assert won.count(True) == 1
            assert folder.read_bytes(name) == b"%d" % won.index(True)


def test_a_disk_that_fills_leaves_the_old_content_and_no_temporary_file(tmp_path, monkeypatch):
    folder = Folder(tmp_path)
    folder.write_bytes("report.json", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space"):
        folder.write_bytes("report.json", b"new")
    monkeypatch.undo()
    assert folder.read_bytes("report.json") == b"old"
    assert folder.list() == ["report.json"]


def test_local_path_is_only_for_the_disk(tmp_path):
    assert Folder(f"file://{tmp_path}").local_path == tmp_path
    assert Folder("memory://x").local_path is None
