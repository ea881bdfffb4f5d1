import errno
import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch

from eagleray.errors import CheckpointError, TakenOver
from eagleray.packaging import CheckpointStore, Image, storage
from support import crashing


@pytest.fixture(params=["disk", "memory"])
def url(request, tmp_path):
    return str(tmp_path / "checkpoints") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/c"


def commit(store, step, attempt=1, value=None):
    weights = {"w": torch.full((40,), float(step if value is None else value))}
    return store.commit(
        step, attempt=attempt, tensors={"weights": weights, "optimizer": {}}, state={"consumed": step * 64}
    )


def is_whole(checkpoint):
    weights = checkpoint.tensors("weights")["w"]
    return bool((weights == checkpoint.step).all()) and checkpoint.state == {"consumed": checkpoint.step * 64}


def newest(url):
    said = []
    return CheckpointStore(url).newest(said.append), said


def flip(url, name, file, offset):
    folder = storage.Folder(url).child(name)
    data = bytearray(folder.read_bytes(file))
    data[offset] ^= 0x10
    folder.write_new(file, bytes(data))


def test_what_was_committed_is_found(url):
    store = CheckpointStore(url)
    assert newest(url) == (None, [])
    assert store.next_attempt() == 1
    made = commit(store, 50)
    found, said = newest(url)
    assert found == made
    assert is_whole(found)
    assert said == []
    assert store.next_attempt() == 2
    assert found.names == ["optimizer", "weights"]
    assert found.tensors("optimizer") == {}
    with pytest.raises(CheckpointError, match=r"has no tensors 'momentum'; it has optimizer, weights"):
        found.tensors("momentum")


def test_the_newest_of_the_newest_attempt_counts(url):
    store = CheckpointStore(url)
    for step in (100, 150):
        commit(store, step, attempt=1)
    commit(store, 110, attempt=2)
    assert newest(url)[0].step == 110


def test_an_older_attempt_is_refused(url):
    commit(CheckpointStore(url), 100, attempt=3)
    with pytest.raises(TakenOver, match=r"attempt 2 is refused: attempt 3 .* has taken over"):
        commit(CheckpointStore(url), 120, attempt=2)
    assert newest(url)[0].step == 100
    assert len(CheckpointStore(url).folder.list()) == 1


def test_an_attempt_overtaken_while_it_writes_is_refused(url, monkeypatch):
    store = CheckpointStore(url)
    plain = store._fence
    calls = iter([lambda: None, lambda: commit(CheckpointStore(url), 90, attempt=2)])

    def overtaken(step, attempt):
        next(calls)()
        plain(step, attempt)

    monkeypatch.setattr(store, "_fence", overtaken)
    with pytest.raises(TakenOver, match=r"refused"):
        commit(store, 100, attempt=1)
    found, said = newest(url)
    assert found.step == 90
    assert said == []
    assert store.folder.list() == ["step-00000090.attempt-0002"]


def test_the_same_step_again_replaces_it(url):
    store = CheckpointStore(url)
    commit(store, 100, value=-1)
    commit(store, 100)
    assert is_whole(newest(url)[0])
    assert len(store.folder.list()) == 1


def test_an_image_makes_the_same_checkpoint_as_its_tensors(tmp_path):
    tensors = {"a": torch.arange(5), "b": torch.ones(3, 2)}
    stores = [CheckpointStore(tmp_path / name) for name in ("tensors", "image")]
    made = [
        store.commit(1, attempt=1, tensors={"weights": given}, state={})
        for store, given in zip(stores, (tensors, Image(tensors)), strict=True)
    ]
    assert made[0].manifest == made[1].manifest
    assert stores[1].newest(pytest.fail) == made[1]


def test_what_is_called_before_the_commit_sees_the_files_and_can_stop_it(url):
    store = CheckpointStore(url)
    commit(store, 100)
    seen = []

    def refuse():
        seen.append((newest(url)[0].step, [name for name in store.folder.files() if "150" in name]))
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=r"step 150 cannot be written .* No space left"):
        store.commit(150, attempt=1, tensors={"weights": {}}, state={}, before_commit=refuse)
    [(step, files)] = seen
    assert step == 100
    assert [name.rsplit("/", 1)[-1] for name in files] == [
        "MANIFEST.json",
        "state.json",
        "weights.safetensors",
    ]
    assert newest(url)[0].step == 100
    assert not [name for name in store.folder.files() if "150" in name]


@pytest.mark.parametrize(
    "file", ["weights.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json", "COMMIT"]
)
def test_any_flipped_byte_is_found_and_the_one_before_used(url, file):
    store = CheckpointStore(url)
    commit(store, 100)
    name = commit(store, 150).url.rsplit("/", 1)[-1]
    size = len(store.folder.read_bytes(f"{name}/{file}"))
    for offset in {*range(0, size, max(1, size // 12)), size - 1}:
        flip(url, name, file, offset)
        found, said = newest(url)
        assert found.step == 100
        assert is_whole(found)
        assert len(said) == 1
        assert said[0].startswith("checkpoint step 150: ")
        assert said[0].endswith("; using step 100")
        flip(url, name, file, offset)
    assert newest(url)[0].step == 150


def test_the_words_for_damage(url):
    store = CheckpointStore(url)
    names = [commit(store, step).url.rsplit("/", 1)[-1] for step in (50, 100, 150, 200)]
    flip(url, names[1], "weights.safetensors", 3)
    store.folder.remove(f"{names[2]}/state.json")
    store.folder.remove(f"{names[3]}/COMMIT")
    assert newest(url)[1] == [
        "checkpoint step 200: was not committed; using step 50",
        "checkpoint step 150: state.json is missing; using step 50",
        "checkpoint step 100: weights.safetensors does not match its manifest; using step 50",
    ]
    store.folder.remove(f"{names[0]}/weights.safetensors")
    assert newest(url)[0] is None
    assert (
        newest(url)[1][-1] == "checkpoint step 50: weights.safetensors is missing; no older checkpoint to use"
    )


def test_damage_between_finding_and_reading_is_an_error(url):
    found = commit(CheckpointStore(url), 100)
    flip(url, found.url.rsplit("/", 1)[-1], "weights.safetensors", 90)
    with pytest.raises(CheckpointError, match=r"weights.safetensors does not match"):
        found.tensors("weights")


def test_prune_keeps_the_newest_that_verify(url):
    store = CheckpointStore(url)
    names = [commit(store, step).url.rsplit("/", 1)[-1] for step in (10, 20, 30, 40)]
    flip(url, names[3], "weights.safetensors", 5)
    store.prune(2)  # 40 is damaged: 30 and 20 are what can be used
    assert store.folder.list() == names[1:]
    commit(store, 50), commit(store, 60)
    store.prune(2)
    assert [checkpoint.step for checkpoint in [newest(url)[0]]] == [60]
    assert len(store.folder.list()) == 2


def test_prune_removes_nothing_where_nothing_verifies(url):
    store = CheckpointStore(url)
    for step in (10, 20, 30):
        flip(url, commit(store, step).url.rsplit("/", 1)[-1], "weights.safetensors", 5)
    before = store.folder.list()
    store.prune(1)
    assert store.folder.list() == before


def test_prune_removes_leftovers_of_dead_attempts_only(tmp_path):
    store = CheckpointStore(tmp_path)
    commit(store, 40, attempt=2)
    left = {
        ".tmp-step-00000030.attempt-0001-ab12": False,
        "step-00000035.attempt-0001": False,
        ".tmp-step-00000050.attempt-0003-ab12": True,
        "step-00000050.attempt-0003": True,
        "notes": True,
    }
    for name in left:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(b"half")
    store.prune(2)
    assert {name: (tmp_path / name).exists() for name in left} == left


def operations_of(action, folder, monkeypatch):
    counting = crashing.CrashingOs()
    monkeypatch.setattr(storage, "os", counting)
    action(CheckpointStore(folder))
    monkeypatch.undo()
    return counting.done


def replace_and_prune(store):
    commit(store, 100)
    store.prune(2)


@pytest.mark.parametrize("tears", [False, True], ids=["killed", "power lost"])
@pytest.mark.parametrize(
    "action", [lambda store: commit(store, 150), replace_and_prune], ids=["commit", "replace"]
)
def test_a_crash_at_any_operation_leaves_the_newest_or_the_one_before(tmp_path, monkeypatch, action, tears):
    start = tmp_path / "start"
    for step in (40, 50, 100):
        commit(CheckpointStore(start), step)
    shutil.copytree(start, tmp_path / "count")
    operations = operations_of(action, tmp_path / "count", monkeypatch)
    assert {"mkdir", "write", "fsync", "rename"} <= set(operations)
    assert len(operations) > 20
    seen = set()
    for crash_at in range(len(operations)):
        folder = tmp_path / f"crash-{crash_at}"
        shutil.copytree(start, folder)
        monkeypatch.setattr(storage, "os", crashing.CrashingOs(crash_at, tears=tears))
        with pytest.raises(crashing.Crash):
            action(CheckpointStore(folder))
        monkeypatch.undo()
        found, _ = newest(folder)
        assert found is not None, operations[crash_at]
        assert is_whole(found), operations[crash_at]
        assert found.step in {50, 100, 150}
        seen.add(found.step)
        monkeypatch.setattr(storage, "os", crashing.CrashingOs())
        after = CheckpointStore(folder)  # the next attempt works, and cleans up
        commit(after, 160, attempt=after.next_attempt())
        after.prune(1)
        monkeypatch.undo()
        assert after.folder.list() == ["step-00000160.attempt-0002"], operations[crash_at]
        shutil.rmtree(folder)
    assert len(seen) == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failing_disk_at_any_operation_leaves_the_commits_and_nothing_else(tmp_path, monkeypatch, code):
    start = tmp_path / "start"
    for step in (50, 100):
        commit(CheckpointStore(start), step)
    before = sorted(os.listdir(start))
    shutil.copytree(start, tmp_path / "count")
    operations = operations_of(lambda store: commit(store, 100, value=7), tmp_path / "count", monkeypatch)
    removing = len(operations) - 1 - operations[::-1].index("fsync")  # from here on the new commit counts
    for fail_at in range(removing + 1):
        folder = tmp_path / f"fail-{fail_at}"
        shutil.copytree(start, folder)
        monkeypatch.setattr(
            storage, "os", crashing.CrashingOs(fail_at, error=OSError(code, os.strerror(code)))
        )
        with pytest.raises(
            CheckpointError, match=r"checkpoint step 100 cannot be written to .*; .* untouched"
        ):
            commit(CheckpointStore(folder), 100, value=7)
        monkeypatch.undo()
        assert sorted(os.listdir(folder)) == before, operations[fail_at]
        assert is_whole(newest(folder)[0])
        shutil.rmtree(folder)


def test_a_full_disk_says_what_to_do(tmp_path, monkeypatch):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(storage, "os", crashing.CrashingOs(8, error=error))
    with pytest.raises(
        CheckpointError, match=r"No space left on device; free space there, or point EAGLERAY_STORAGE"
    ):
        commit(CheckpointStore(tmp_path / "c"), 100)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a small tmpfs")
def test_a_really_full_disk(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("this root may not mount")
    try:
        store = CheckpointStore(tmp_path / "c")
        commit(store, 100)
        before = store.folder.files()
        with pytest.raises(CheckpointError, match=r"No space left on device"):
            store.commit(150, attempt=1, tensors={"weights": {"w": torch.zeros(200_000)}}, state={})
        assert store.folder.files() == before
        assert is_whole(store.newest(pytest.fail))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_storage_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path):
    (tmp_path / "c").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match=r"cannot be listed"):
        CheckpointStore(tmp_path / "c").newest(pytest.fail)


def test_state_with_a_tensor_is_refused_and_leaves_nothing(url):
    store = CheckpointStore(url)
    with pytest.raises(TypeError, match=r"state holds a tensor at /rng"):
        store.commit(1, attempt=1, tensors={}, state={"rng": torch.zeros(1)})
    with pytest.raises(TypeError, match=r"sparse"):
        store.commit(
            1, attempt=1, tensors={"a": {"b": torch.zeros(2)}, "w": {"x": torch.eye(2).to_sparse()}}, state={}
        )
    assert store.folder.list() == []


def test_nothing_on_disk_is_a_pickle(tmp_path):
    checkpoint = commit(CheckpointStore(tmp_path), 10)
    kinds = {Path(checkpoint.url, name).suffix for name in os.listdir(checkpoint.url)}
    assert kinds == {".safetensors", ".json", ""}
    assert json.loads(Path(checkpoint.url, "COMMIT").read_text())["attempt"] == 1


KILLED = """
import sys, torch
from eagleray.packaging import CheckpointStore
store = CheckpointStore(sys.argv[1])
for step in range(1, 10_000):
    weights = {"w": torch.full((100_000,), float(step))}
    store.commit(step, attempt=int(sys.argv[2]), tensors={"weights": weights}, state={"consumed": step * 64})
    store.prune(2)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment(tmp_path):
    for attempt in range(1, 13):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path), str(attempt)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": "platform"},
        ) as process:
            step = 0
            for _ in range(attempt):
                step = int(process.stdout.readline())
            process.kill()
            step = max([step, *map(int, process.stdout.read().split())])
        found, _ = newest(tmp_path)
        assert (found.attempt, is_whole(found)) == (attempt, True)
        assert found.step in {step, step + 1}
