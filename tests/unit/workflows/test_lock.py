"""One driver at a time has a run."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from eagleray.errors import InputError, TakenOver
from eagleray.packaging import Folder
from eagleray.workflows import lock
from eagleray.workflows.lock import Driver, RunLock

HOLDER = """
import sys, time
from eagleray.packaging import Folder
from eagleray.workflows.lock import RunLock
with RunLock(Folder(sys.argv[1]), "job-7"):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "digits-1")


@pytest.fixture
def holder(folder):
    """Another process that has the run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder.url],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "platform"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_a_run_that_goes_on_is_refused_until_its_driver_is_gone(folder, holder):
    said = rf"run digits-1 goes on already \(job job-7, process {holder.pid} on .*\); .*eagleray stop job-7"
    with pytest.raises(InputError, match=said), RunLock(folder):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunLock(folder):
        assert folder.child("drivers").list() == ["000001.json", "000002.json"]


def test_a_driver_that_ended_leaves_the_run_to_the_next(folder):
    for _ in range(2):
        with RunLock(folder):
            pass
    assert [folder.read_json(f"drivers/00000{n}.json")["is_over"] for n in (1, 2)] == [True, True]


def test_of_many_at_once_one_gets_the_run(folder):
    all_tried = threading.Barrier(6)

    def take(_):
        try:
            with RunLock(folder):
                all_tried.wait(60)
                return True
        except InputError:
            all_tried.wait(60)
            return False

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(take, range(6))).count(True) == 1


def test_a_driver_of_another_machine_lives_by_its_word(folder):
    there = Driver("far", "other boot", 1, 1, None, heard_at=time.time() - 20)
    folder.write_bytes("drivers/000001.json", lock._to_bytes(there))
    with pytest.raises(InputError, match=r"process 1 on far, heard of 2\d s ago; .*60 s.*end that process"):
        RunLock(folder).__enter__()
    assert not there.is_alive(there.heard_at + lock.SILENT_S)


def test_the_sign_of_life_is_renewed(folder):
    with RunLock(folder, heartbeat_s=0.01):
        first = folder.read_json("drivers/000001.json")["heard_at"]
        deadline = time.monotonic() + 60
        while (heard := json.loads(folder.read_bytes("drivers/000001.json"))["heard_at"]) == first:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert heard > first
        assert re.fullmatch(r"\d{6}\.json", folder.child("drivers").list()[-1])


def test_a_driver_that_was_cut_off_ends_when_another_has_the_run(folder):
    taken = threading.Event()

    def drive():
        with RunLock(folder, heartbeat_s=0.01, end=taken.set):
            there = Driver("far", "other boot", 7, 1, "job-9", heard_at=time.time())
            folder.write_bytes("drivers/000002.json", lock._to_bytes(there))
            assert taken.wait(60)
            raise KeyboardInterrupt  # as the driver's main thread hears of it

    with pytest.raises(TakenOver, match="run digits-1 was taken over by job job-9, process 7 on far: this"):
        drive()
    assert folder.read_json("drivers/000002.json")["host"] == "far", "its own record is another"


def test_the_own_record_is_nobody_elses(folder):
    taken = threading.Event()
    with RunLock(folder, heartbeat_s=0.01, end=taken.set):
        assert not taken.wait(0.1)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": 1}'])
def test_a_damaged_record_of_a_driver_keeps_nobody_out(folder, content):
    folder.write_bytes("drivers/000004.json", content)
    with RunLock(folder):
        assert folder.child("drivers").list()[-1] == "000005.json"


def test_a_record_of_a_later_version_is_understood(folder, holder):
    record = folder.read_json("drivers/000001.json")
    folder.write_json("drivers/000001.json", {**record, "mood": "fine"})
    with pytest.raises(InputError, match="goes on already"):
        RunLock(folder).__enter__()
