"""The guard of a node, with a `ray start` that starts sleeping processes in place of Ray's."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from eagleray.cluster import guard, processes, profiles, ray_start_ray260
from eagleray.cluster.guard import Guard, Record
from eagleray.errors import ClusterError, InputError

# Like Ray's: it leads a raylet and a worker; an unexpected end of the raylet ends it too, SIGTERM does not.
RAY = """#!/bin/bash
echo "$@" >> {folder}/starts
[ -e {folder}/fails ] && {{ echo "no such GCS"; exit 1; }}
{folder}/raylet 300 &
raylet=$!
sleep 301 &
echo "Ray runtime started."
wait $raylet
[ $? = 143 ] && {{ sleep 302; }}
exit 1
"""
LIMIT_S = 20.0


@pytest.fixture
def ray(tmp_path, monkeypatch):
    """A folder with the program `ray`; what it was called with is in `starts`."""
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(guard, "_POLL_S", 0.02)
    shutil.copy(shutil.which("sleep") or "", tmp_path / "raylet")
    (tmp_path / "ray").write_text(RAY.format(folder=tmp_path))
    (tmp_path / "ray").chmod(0o755)
    yield tmp_path
    guard.stop()


class Running:
    """A guard in a thread; `is_cut` cuts its host off."""

    def __init__(self, ray: Path, fence_s: float = 0.1) -> None:
        self.is_cut = False
        self.guard = Guard([str(ray / "ray"), "start"], lambda: not self.is_cut, fence_s)
        self.status: int | None = None
        self.markers: list[str] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.status = self.guard.run()

    def await_node(self) -> str:
        """Marker of a node that has not been seen before, when it is up."""
        wait(lambda: self.guard.record.is_up and self.guard.record.marker not in self.markers)
        self.markers.append(self.guard.record.marker)
        wait(lambda: {"raylet", "sleep"} <= commands(self.markers[-1]))
        return self.markers[-1]

    def stop(self) -> int | None:
        self.guard.stop()
        self.thread.join(LIMIT_S)
        return self.status


@pytest.fixture
def running(ray):
    made = Running(ray)
    yield made
    made.stop()


def wait(condition) -> None:
    assert processes.wait_until(condition, timeout_s=LIMIT_S, interval_s=0.01)


def commands(marker: str) -> set[str]:
    """Names of the processes of a node."""
    return {Path(f"/proc/{one.pid}/comm").read_text().strip() for one in processes.belonging(marker)}


def raylet_of(marker: str) -> processes.Process:
    found = guard._raylet(marker)
    assert found is not None
    return found


def test_a_host_that_is_cut_off_ends_its_node_and_starts_it_again_when_the_head_is_back(running, capfd):
    first = running.await_node()
    running.is_cut = True
    wait(lambda: not processes.belonging(first))
    assert running.guard.record.marker == first, "nothing is started while the head cannot be heard"
    running.is_cut = False
    second = running.await_node()
    assert processes.belonging(first) == []
    assert running.stop() == 0
    assert processes.belonging(second) == []
    assert "the head does not answer: ended the node" in capfd.readouterr().out


def test_a_node_that_ends_by_itself_is_started_again(running):
    first = running.await_node()
    processes.send(raylet_of(first), signal.SIGABRT)  # so it ends when the GCS has declared it dead
    running.await_node()
    assert processes.belonging(first) == []


def test_a_node_that_was_stopped_on_purpose_stays_so(running, monkeypatch):
    monkeypatch.setattr(ray_start_ray260, "NOTICES_AN_END_S", 0.5)
    marker = running.await_node()
    processes.send(raylet_of(marker), signal.SIGTERM)  # `ray stop`
    running.thread.join(LIMIT_S)
    assert running.status == 0
    assert processes.belonging(marker) == []


def test_a_command_that_never_starts_a_node_is_given_up(ray, monkeypatch):
    monkeypatch.setattr(guard, "_MAX_BACKOFF_S", 0.01)
    (ray / "fails").touch()
    started = Running(ray)
    started.thread.join(LIMIT_S)
    assert started.status == 1
    assert len((ray / "starts").read_text().splitlines()) == 3


def command(ray: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "PATH": f"{ray}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        profiles.VARIABLE: "fast",
    }
    return subprocess.run(
        [sys.executable, "-m", "eagleray.cluster.guard", *words],
        env=env, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_the_command_starts_one_guard_in_place_of_another_and_stops_it(ray):
    with closing(socket.create_server(("127.0.0.1", 0))) as gcs:
        start = ("start", "--", "ray", "start", f"--address=127.0.0.1:{gcs.getsockname()[1]}", "--num-cpus=1")
        for _ in range(2):
            done = command(ray, *start)
            assert done.returncode == 0, done.stderr
            assert "the node is up" in done.stdout
        assert (ray / "starts").read_text().splitlines() == [f"{' '.join(start[3:])} --block"] * 2
        record = Record.read()
        assert record is not None
        assert record.process.is_alive
        running = processes.belonging(record.marker)
        assert len(running) >= 3
        assert command(ray, "stop").returncode == 0
    assert not record.process.is_alive
    assert processes.belonging(record.marker) == []
    assert Record.read() is None
    assert command(ray, "stop").returncode == 0, "nothing to stop is no error"


def test_a_guard_that_was_killed_leaves_its_node_to_stop(ray):
    with closing(socket.create_server(("127.0.0.1", 0))) as gcs:
        address = f"--address=127.0.0.1:{gcs.getsockname()[1]}"
        assert command(ray, "start", "--", "ray", "start", address).returncode == 0
        record = Record.read()
        assert record is not None
        processes.send(record.process, signal.SIGKILL)
        wait(lambda: not record.process.is_alive)
        assert processes.belonging(record.marker)
        command(ray, "stop")
    assert processes.belonging(record.marker) == []


def test_a_start_that_fails_shows_what_ray_said(ray, monkeypatch):
    (ray / "fails").touch()
    monkeypatch.setenv("PATH", f"{ray}{os.pathsep}{os.environ['PATH']}")
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as gcs,
        pytest.raises(
            ClusterError, match=r"the node did not come up; .*guard-.*\.log ends with:\n(.*\n)*no such GCS"
        ),
    ):
        guard.start(["ray", "start", f"--address=127.0.0.1:{gcs.getsockname()[1]}"])
    assert Record.read() is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected one of:"),
        (["start", "ray", "start"], "expected one of:"),
        (["run", "--"], "expected one of:"),
        (["start", "--", "ray", "start", "--head"], "and this starts a head: ray start --head"),
        (["run", "--", "ray", "start"], "give the GCS as host:port"),
        (["run", "--", "ray", "start", "--address=auto"], "give the GCS as host:port"),
    ],
)
def test_a_guard_that_would_watch_nothing_is_refused(words, message, capsys):
    assert guard.main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (["ray", "start", "--address=10.0.0.1:6379"], ("10.0.0.1", 6379)),
        (["ray", "start", "--num-cpus", "2", "--address", "head:7000", "--block"], ("head", 7000)),
        (["ray", "start", "--address=[fd00::1]:6379"], ("fd00::1", 6379)),
    ],
)
def test_the_heads_address_is_read_from_the_command(words, address):
    assert ray_start_ray260.gcs_address(words) == address
    assert ray_start_ray260.blocking(words).count("--block") == 1


def test_what_is_refused_raises_before_anything_is_stopped(ray):
    with pytest.raises(InputError):
        guard.start(["ray", "start", "--head"])
