"""A plain job's command: its exit code, its signals, its end; and what is claimed for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eagleray.cluster import processes
from eagleray.errors import InputError
from eagleray.workflows.hold import main, request_of, run

LIMIT_S = 20.0
HOLDER = """
import os, sys
from eagleray.workflows.hold import run
sys.exit(run(sys.argv[1:], dict(os.environ)))
"""


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", 'test "$HELD" = yes'], 0),
        (["/nonexistent/command"], 127),
        (["/etc/hostname"], 126),
    ],
)
def test_the_exit_code_is_the_commands(
    command: list[str], code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(command, {**os.environ, "HELD": "yes"}) == code
    if code in (126, 127):
        assert capfd.readouterr().err.startswith(f"error: {command[0]}: ")


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds, whose command counts the SIGTERMs it gets, and ends at SIGUSR1."""
    command = (
        "n=0; trap 'n=$((n+1)); echo term $n' TERM; trap 'exit 5' USR1; echo $$; while :; do sleep 0.05; done"
    )
    found = subprocess.Popen(
        (sys.executable, "-c", HOLDER, "sh", "-c", command),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    yield found
    found.kill()
    found.wait()
    assert found.stdout is not None
    found.stdout.close()


def test_a_signal_to_the_whole_job_reaches_the_command_once(holder: subprocess.Popen[str]) -> None:
    assert holder.stdout is not None
    int(holder.stdout.readline())
    os.killpg(holder.pid, signal.SIGTERM)
    assert holder.stdout.readline() == "term 1\n"
    os.killpg(holder.pid, signal.SIGUSR1)
    assert holder.wait(LIMIT_S) == 5
    assert holder.stdout.readline() == "", "no second one"


def test_the_command_does_not_outlive_a_holder_that_is_killed(holder: subprocess.Popen[str]) -> None:
    assert holder.stdout is not None
    command = processes.of(int(holder.stdout.readline()))
    assert command.is_alive
    holder.kill()
    deadline = time.monotonic() + LIMIT_S
    while command.is_alive:
        assert time.monotonic() < deadline, "the command runs on"
        time.sleep(0.02)


def test_what_a_job_claims() -> None:
    request = request_of(cpu=0, gpu=2, units=3, labels=["zone=a", "arch=in(x,y)"], command=["python", "x.py"])
    assert (dict(request.bundle), request.minimum, request.wanted) == ({"GPU": 2}, 3, 3)
    assert request.label_selector == {"zone": "a", "arch": "in(x,y)"}
    assert request.holder == "job python x.py"
    assert not request.is_yieldable
    other = request_of(cpu=0, gpu=2, units=3, labels=[], command=["python", "x.py"])
    assert other.claim != request.claim


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--", "true"], "a unit of nothing; give it some CPU or GPU"),
        (["--gpu", "-1", "--", "true"], "no amount may be below 0"),
        (["--cpu", "1", "--label", "zone", "--", "true"], "--label zone: want KEY=VALUE"),
        (["--cpu", "1", "--units", "0", "--", "true"], "--units 0: want 1 or more"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert expected in capsys.readouterr().err


def test_the_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--cpu", "1"])
    assert caught.value.code == 2
    with pytest.raises(InputError):
        request_of(cpu=1, gpu=0, units=0, labels=[], command=["true"])
