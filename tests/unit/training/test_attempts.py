"""The numbers of a run's attempts, and how they are noted."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path

import pytest

from eagleray.packaging import Folder
from eagleray.training.attempts import Notes, next_attempt
from support.pretend_ledger import until


def test_what_is_noted_is_not_given_again(tmp_path: Path):
    run, said = Folder(str(tmp_path)), []
    Notes(run, said.append).note(3, 2)
    found = json.loads((tmp_path / "attempts" / "000003.json").read_text())
    assert (found["attempt"], found["world_size"], next_attempt(run), said) == (3, 2, 4, [])


def test_a_full_disk_is_said_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Folder, "write_json", full)
    said: list[str] = []
    run = Folder(str(tmp_path))
    Notes(run, said.append).note(3, 2)
    assert said == [f"attempt 3 cannot be noted in {run.url}: No space left on device; training goes on"]


def test_storage_that_stands_still_does_not_hold_the_workers_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    goes_on, write = threading.Event(), Folder.write_json

    def slow(*arguments: object) -> None:
        assert goes_on.wait(30)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Folder, "write_json", slow)
    run = Folder(str(tmp_path))
    Notes(run, lambda _: None, limit_s=0.01).note(1, 1)
    assert next_attempt(run) == 1
    goes_on.set()
    until(lambda: next_attempt(run) == 2)
