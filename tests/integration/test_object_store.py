"""Folders, checkpoints and packages on a real object store: OpenStack Swift through its S3 API."""

import os
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from eagleray.errors import CheckpointError, PackageError
from eagleray.packaging import CheckpointStore, Folder, open_package, write_package
from eagleray.packaging.journal import Journal, Segment
from support.cards import card, weights
from support.object_store import free_port


@pytest.fixture
def url(object_store):
    return f"{object_store}/{uuid.uuid4().hex}"


def commit(store, step, attempt=1):
    return store.commit(
        step,
        attempt=attempt,
        tensors={"weights": {"w": torch.full((40,), float(step))}},
        state={"step": step},
    )


def newest(url):
    said = []
    return CheckpointStore(url).newest(said.append), said


def test_what_is_written_is_read(url, tmp_path):
    folder = Folder(url)
    assert folder.list() == []
    assert not folder.exists()
    folder.write_json("spec.json", {"a": [1]})
    folder.write_bytes("deep/er/file", b"x" * 5)
    (tmp_path / "source").write_bytes(b"up")
    assert folder.upload(tmp_path / "source", "curves.png") == f"{url}/curves.png"
    assert folder.read_json("spec.json") == {"a": [1]}
    assert folder.child("deep").read_bytes("er/file") == b"x" * 5
    assert folder.list() == ["curves.png", "deep", "spec.json"]
    assert folder.files() == ["curves.png", "deep/er/file", "spec.json"]
    folder.write_bytes("curves.png", b"new")
    assert folder.read_bytes("curves.png") == b"new"
    folder.remove("deep")
    folder.remove("never was")
    assert folder.list() == ["curves.png", "spec.json"]
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("nothing")


def test_empty_objects_that_stand_for_folders_are_no_files(url):
    import s3fs

    folder = Folder(url)
    folder.write_bytes("a/b", b"x")
    for name in ("", "a/"):  # as pyarrow leaves them in Ray Train's storage
        s3fs.S3FileSystem().call_s3(
            "put_object", Bucket="eagleray", Key=f"{url.rpartition('/')[2]}/{name}", Body=b""
        )
    assert folder.files() == ["a/b"]
    assert folder.list() == ["a"]
    folder.remove("a")
    assert folder.list() == []


def test_a_file_is_created_once(url):
    folder = Folder(url)
    assert folder.create("drivers/1.json", b"first")
    assert not folder.create("drivers/1.json", b"second")
    assert folder.read_bytes("drivers/1.json") == b"first"
    with ThreadPoolExecutor(6) as threads:
        assert not any(threads.map(lambda _: Folder(url).create("drivers/1.json", b"late"), range(6)))
    assert folder.files() == ["drivers/1.json"]


def test_checkpoints(url):
    store = CheckpointStore(url)
    assert newest(url) == (None, [])
    commit(store, 50)
    committed = commit(store, 100)
    found, said = newest(url)
    assert found == committed
    assert said == []
    assert (found.tensors("weights")["w"] == 100).all()
    assert found.state == {"step": 100}
    commit(store, 100)  # the same step again replaces it
    assert commit(store, 150).step == 150
    store.prune(2)
    assert store.folder.list() == ["step-00000100.attempt-0001", "step-00000150.attempt-0001"]


def test_a_checkpoint_without_its_commit_or_damaged_is_passed_over(url):
    store = CheckpointStore(url)
    names = [commit(store, step).url.rsplit("/", 1)[-1] for step in (50, 100, 150)]
    store.folder.remove(f"{names[2]}/COMMIT")
    store.folder.write_bytes(f"{names[1]}/weights.safetensors", b"rot")
    found, said = newest(url)
    assert found.step == 50
    assert said == [
        "checkpoint step 150: was not committed; using step 50",
        "checkpoint step 100: weights.safetensors does not match its manifest; using step 50",
    ]


def test_an_attempt_that_was_overtaken_commits_no_more(url):
    store = CheckpointStore(url)
    commit(store, 50, attempt=1)
    assert store.next_attempt() == 2
    commit(store, 60, attempt=2)
    with pytest.raises(CheckpointError, match="attempt 2 of the run has taken over"):
        commit(store, 70, attempt=1)
    assert newest(url)[0].attempt == 2


def test_a_sample_journal(url):
    first, last = Segment(1, 50, None, ([1, 0, 8],)), Segment(2, 60, (1, 50), ([2, 8, 16],))
    for segment in (last, first, Segment(1, 55, (1, 50), ()), last):
        Journal(url).write(segment)
    assert Journal(url).lineage(2, 60) == [first, last]
    assert [segment.step for segment in Journal(url).read()] == [50, 55, 60]


def test_a_package(url):
    made = card()
    manifest = write_package(Folder(f"{url}/p"), made, weights(made))
    package = open_package(f"{url}/p", digest=manifest.digest)
    assert package.card == made
    assert not package.build_module().training
    Folder(url).write_bytes("p/weights.safetensors", b"rot")
    with pytest.raises(PackageError, match=r"weights.safetensors does not match its manifest"):
        package.build_module()
    Folder(url).remove("p/COMMIT")
    with pytest.raises(PackageError, match=r"was not committed"):
        open_package(f"{url}/p")
    with pytest.raises(PackageError, match=r"is not empty and holds no whole model package"):
        write_package(Folder(f"{url}/p"), made, weights(made))
    Folder(url).remove("p")
    write_package(Folder(f"{url}/p"), made, weights(made))
    open_package(f"{url}/p", digest=manifest.digest).build_module()


WRITER = """
import sys, time
import torch
from eagleray.packaging import Folder, write_package
from support.cards import card
write = Folder.write_new
def slowly(self, name, data):
    write(self, name, data)
    print(name, flush=True)
    time.sleep(0.3)
Folder.write_new = slowly
write_package(Folder(sys.argv[1]), card(), {"w": torch.zeros(3)})
"""


def test_a_folder_has_one_writer_at_a_time(url):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, f"{url}/p"], stdout=subprocess.PIPE, text=True, env=environment
    ) as writer:
        assert writer.stdout.readline() == "model.json\n"
        with pytest.raises(PackageError, match=r"another process writes one"):
            write_package(Folder(f"{url}/p"), card(metrics={}), {"w": torch.ones(3)})
        assert writer.communicate(timeout=60)[0].split()[-1] == "COMMIT"
    assert writer.returncode == 0
    assert torch.equal(open_package(f"{url}/p").weights()["w"], torch.zeros(3))
    assert ".writing" not in Folder(f"{url}/p").files()


def test_a_bucket_that_is_not_there(object_store):
    nowhere = "s3://no-such-bucket/x"
    with pytest.raises(CheckpointError, match=r"cannot be written to s3://no-such-bucket"):
        commit(CheckpointStore(nowhere), 50)
    with pytest.raises(PackageError, match=r"cannot be written to s3://no-such-bucket/x/p: .*bucket"):
        write_package(Folder(f"{nowhere}/p"), card(), weights(card()))
    assert not Folder(nowhere).exists()


def test_a_store_that_is_away(object_store, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(CheckpointError, match=r"cannot be listed: .*connect.*check that the storage"):
            CheckpointStore("s3://eagleray/away").newest(print)
        with pytest.raises(PackageError, match=r"s3://eagleray/away cannot be read: .*connect"):
            open_package("s3://eagleray/away")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
