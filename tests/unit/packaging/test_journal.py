"""Segments of the sample journal: written once, checked when read, followed back to step 0."""

import errno
import json
import uuid
from dataclasses import replace

import pytest
import torch

from eagleray.errors import CheckpointError, TakenOver
from eagleray.packaging import CheckpointStore, Folder, storage
from eagleray.packaging.journal import Journal, Segment
from support import crashing


@pytest.fixture(params=["disk", "memory"])
def url(request, tmp_path):
    return str(tmp_path / "run") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/run"


def segment(step, attempt=1, parent=None, first=None):
    first = (parent[1] if parent else 0) + 1 if first is None else first
    entries = tuple([number, number * 8 - 8, number * 8, 8] for number in range(first, step + 1))
    return Segment(attempt, step, parent, entries)


def commit(url, step, attempt=1):
    store = CheckpointStore(f"{url}/checkpoints")
    store.commit(step, attempt=attempt, tensors={"weights": {"w": torch.ones(3)}}, state={})


def write(url, *segments):
    for one in segments:
        Journal(url).write(one)


def name(step, attempt=1):
    return f"segment-{step:08d}.attempt-{attempt:04d}.json"


def test_what_was_written_is_read_in_order(url):
    assert Journal(url).read() == []
    made = [segment(50), segment(100, 1, (1, 50)), segment(60, 2, (1, 50)), segment(60, 3, (2, 60))]
    write(url, *reversed(made))
    assert Journal(url).read() == made
    assert Folder(url).child("journal").list() == [name(50), name(60, 2), name(60, 3), name(100)]


def test_the_lineage_leads_back_to_step_0_and_leaves_undone_steps_out(url):
    first, kept, resumed = segment(50), segment(100, 1, (1, 50)), segment(130, 2, (1, 100))
    last = segment(140, 2, (2, 130))
    write(url, first, kept, segment(150, 1, (1, 100)), resumed, last, segment(151, 2, (2, 140)))
    assert Journal(url).lineage(2, 140) == [first, kept, resumed, last]
    assert Journal(url).lineage(1, 50) == [first]


def test_the_same_again_changes_nothing(url, monkeypatch):
    write(url, segment(50))
    commit(url, 50)
    monkeypatch.setattr(Folder, "write_bytes", lambda *_: pytest.fail("written again"))
    write(url, segment(50))
    assert Journal(url).read() == [segment(50)]


def test_one_whose_commit_never_happened_is_replaced(url):
    commit(url, 20)
    write(url, segment(50, 1, (1, 40)))
    write(url, segment(50, 1, (1, 20)))
    assert Journal(url).read() == [segment(50, 1, (1, 20))]


@pytest.mark.parametrize(("step", "attempt"), [(50, 1), (60, 1), (30, 2)])
def test_one_of_a_commit_that_stands_or_was_overtaken_is_not(url, step, attempt):
    write(url, segment(50))
    commit(url, step, attempt)
    with pytest.raises(TakenOver, match=rf"segment-00000050.* step {step} of attempt {attempt} is comm"):
        write(url, replace(segment(50), entries=()))
    assert Journal(url).read() == [segment(50)]


def test_one_of_a_damaged_commit_is_replaced(url):
    """Which the run has fallen back from, and is about to replace too."""
    write(url, segment(50), segment(100, 1, (1, 50)))
    commit(url, 50)
    commit(url, 100)
    Folder(url).write_bytes("checkpoints/step-00000100.attempt-0001/state.json", b"x")
    again = segment(100, 1, (1, 90))
    write(url, again)
    assert Journal(url).read()[-1] == again


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], r"damaged \(.*char"),
        (lambda data: data.replace(b"8,16,8", b"8,17,8"), r"damaged \(its SHA-256 is another\)"),
        (
            lambda data: data.replace(b'"parent":null', b'"parent":[0,1]'),
            r"damaged \(its SHA-256 is another\)",
        ),
        (lambda data: b"[]", r"damaged \(fields are missing\)"),
        (lambda data: b"{}", r"damaged \(fields are missing\)"),
        (lambda data: b"\xff\xfe", "damaged"),
        (lambda data: segment(60).to_bytes(), r"damaged \(it is that of segment-00000060"),
        (
            lambda data: data.replace(b'"schema_version":1', b'"schema_version":2'),
            "schema version 2, and this eagleray reads 1",
        ),
    ],
)
def test_a_damaged_segment_is_named(url, damage, reason):
    write(url, segment(50), segment(100, 1, (1, 50)))
    folder = Folder(url).child("journal")
    folder.write_bytes(name(50), damage(folder.read_bytes(name(50))))
    for read in (Journal(url).read, lambda: Journal(url).lineage(1, 100)):
        with pytest.raises(CheckpointError, match=rf"{name(50)} in .*/journal .*{reason}"):
            read()


def test_a_missing_segment_is_named(url):
    write(url, segment(50), segment(100, 1, (1, 50)))
    Folder(url).child("journal").remove(name(50))
    with pytest.raises(CheckpointError, match=rf"{name(50)} is missing in .*/journal; put it back"):
        Journal(url).lineage(1, 100)


def test_damage_beside_the_lineage_does_not_matter(url):
    write(url, segment(50))
    Folder(url).child("journal").write_bytes(name(70), b"torn")
    assert Journal(url).lineage(1, 50) == [segment(50)]


def test_any_flipped_byte_is_found(tmp_path):
    write(tmp_path, segment(5))
    folder = Folder(tmp_path).child("journal")
    content = folder.read_bytes(name(5))
    for offset in range(len(content) - 1):  # but the line's end
        data = bytearray(content)
        data[offset] ^= 0x01
        folder.write_new(name(5), bytes(data))
        with pytest.raises(CheckpointError, match=name(5)):
            Journal(tmp_path).read()


@pytest.mark.parametrize(
    ("step", "attempt", "parent"), [(50, 1, (1, 50)), (50, 1, (1, 60)), (50, 2, (1, 60)), (60, 1, (2, 50))]
)
def test_a_segment_starts_from_a_checkpoint_before_it(step, attempt, parent):
    with pytest.raises(ValueError, match=rf"cannot start from step {parent[1]}, attempt {parent[0]}"):
        Segment(attempt, step, parent, ())


def test_a_new_attempt_may_commit_before_it_has_taken_a_step(url):
    write(url, segment(50), Segment(2, 50, (1, 50), ()))
    assert [len(one.entries) for one in Journal(url).lineage(2, 50)] == [50, 0]


@pytest.mark.parametrize("tears", [False, True])
def test_killed_at_any_operation_it_is_there_whole_or_not_at_all(tmp_path, monkeypatch, tears):
    for crash_at in range(60):
        run = tmp_path / str(crash_at)
        write(run, segment(50))
        fake = crashing.CrashingOs(crash_at, tears=tears)
        monkeypatch.setattr(storage, "os", fake)
        try:
            write(run, segment(100, 1, (1, 50)))
        except crashing.Crash:
            is_over = False
        else:
            is_over = True
        monkeypatch.undo()
        found = Journal(run).read()
        assert found in ([segment(50)], [segment(50), segment(100, 1, (1, 50))])
        if is_over:
            assert len(found) == 2
            return
    pytest.fail("never got through")


def test_a_full_disk_is_the_callers_to_tell(tmp_path, monkeypatch):
    write(tmp_path, segment(50))
    error = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(storage, "os", crashing.CrashingOs(1, error=error))
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, segment(100, 1, (1, 50)))
    monkeypatch.undo()
    assert Journal(tmp_path).read() == [segment(50)]


def test_a_storage_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    write(tmp_path, segment(50))

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    for operation in ("list", "read_bytes"):
        with monkeypatch.context() as patch:
            patch.setattr(Folder, operation, refuse)
            with pytest.raises(CheckpointError, match=r"journal in .* cannot be read: Permission denied"):
                Journal(tmp_path).read()


def test_the_format(tmp_path):
    """As docs/elasticity.md shows it."""
    write(tmp_path, segment(2, 3, None))
    document = json.loads((tmp_path / "journal" / name(2, 3)).read_bytes())
    assert list(document) == ["schema_version", "attempt", "step", "parent", "entries", "sha256"]
    assert document["entries"] == [[1, 0, 8, 8], [2, 8, 16, 8]]
