"""The guard of a worker node that `ray start` made: ends it while the host is cut off, and starts it again.

    python -m eagleray.cluster.guard start -- ray start --address=HEAD:6379 …  returns when the node is up
    python -m eagleray.cluster.guard run -- ray start …                        stays: for systemd, a container
    python -m eagleray.cluster.guard stop                                      ends guard and node

Ray 2.60 leaves the workers of a host that lost its network running, and its node stays dead after the network
is back. The guard asks the head's machine for a sign of life several times a second. Without one for the
profile's `fence_s` it kills every process of the node, waits for the head, and runs the command again; so it
does where the node ended by itself. A node that was stopped on purpose is not started again.

Killing the guard ends nothing else: the node goes on without it.
"""

from __future__ import annotations

import enum
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from eagleray.cluster import fencing, processes, profiles, ray_start_ray260, settings
from eagleray.cluster.files import read_json, write_json
from eagleray.errors import ClusterError, EaglerayError, InputError

_POLL_S = 0.25
_PROBE_S = 1.0
_MAX_BACKOFF_S = 10.0
_FIRST_TRIES = 3
"""Without ever a node: the command is wrong rather than the network."""
_LEAVE_S = 10.0
_START_S = 120.0
_STOP_S = 20.0


class Ending(enum.Enum):
    """Why a node is no more."""

    CUT_OFF = "the head does not answer: ended the node, so that nothing stale goes on"
    ENDED = "the node ended by itself"
    STOPPED = "the node was stopped"


@dataclass(frozen=True)
class Record:
    """What is on disk about a guard, for whoever stops it."""

    process: processes.Process
    marker: str = ""
    """Of its node, in the environment of every process of it; empty before the first."""
    is_up: bool = False

    @staticmethod
    def path() -> Path:
        """Of this host's guard; several hosts may share a home."""
        return settings.home() / f"guard-{os.uname().nodename}.json"

    @classmethod
    def read(cls) -> Record | None:
        """What was written; None where there is none."""
        found = read_json(cls.path())
        return found and cls(processes.Process(**found["process"]), found["marker"], found["is_up"])

    def write(self) -> None:
        """Write it down."""
        settings.make_home()
        write_json(self.path(), {"process": vars(self.process), "marker": self.marker, "is_up": self.is_up})


class Guard:
    """Keeps the node that `command` starts, for as long as the head can be heard."""

    def __init__(self, command: Sequence[str], hears: Callable[[], bool], fence_s: float) -> None:
        self.command, self.hears, self.fence_s = command, hears, fence_s
        self.record = Record(processes.this_process("guard"))
        self.is_stopping = False

    def run(self) -> int:
        """Guard until the node is stopped. Returns the exit status: 1 where there never was a node."""
        try:
            return self._run()
        finally:
            Record.path().unlink(missing_ok=True)

    def _run(self) -> int:
        was_up, failures = False, 0
        while not self.is_stopping:
            while not (self.hears() or self.is_stopping):
                time.sleep(_POLL_S)
            began = time.monotonic()
            ending = self._live()
            was_up |= self.record.is_up
            _say(f"{ending.value} ({time.monotonic() - began:.0f} s after its start)")
            if ending is Ending.STOPPED:
                break
            failures = 0 if self.record.is_up else failures + 1
            if not was_up and failures == _FIRST_TRIES:
                return 1
            time.sleep(min(_MAX_BACKOFF_S, 0.25 * 2**failures) if failures else 0.0)
        return 0

    def stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """End the node, then the guard; a signal handler."""
        self.is_stopping = True

    def _live(self) -> Ending:
        """One node, from its start to its end; nothing of it is left."""
        marker, is_up = secrets.token_hex(12), threading.Event()
        self._write_down(Record(self.record.process, marker))
        child = subprocess.Popen(
            self.command,
            # setproctitle would overwrite the environment of Ray's workers, and the marker with it.
            env={**os.environ, processes.MARKER: marker, "SPT_NOENV": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        threading.Thread(target=_pass_on, args=(child, is_up), daemon=True).start()
        try:
            ending = self._watch(child, is_up)
            if ending is Ending.STOPPED:
                _leave(child)
            return ending
        finally:
            processes.sweep(lambda: processes.belonging(marker), grace_s=0.0)
            child.wait()

    def _watch(self, child: subprocess.Popen[str], is_up: threading.Event) -> Ending:
        """Return when the node has ended, or must."""
        contact, raylet = fencing.Contact(time.monotonic()), None
        while not self.is_stopping:
            if child.poll() is not None:
                return Ending.ENDED
            if raylet is None and is_up.is_set():
                raylet = _raylet(self.record.marker)
                if raylet is not None:
                    self._write_down(Record(self.record.process, self.record.marker, is_up=True))
            elif raylet is not None and not raylet.is_alive:
                limit_s = ray_start_ray260.NOTICES_AN_END_S
                followed = processes.wait_until(lambda: child.poll() is not None, timeout_s=limit_s)
                return Ending.ENDED if followed else Ending.STOPPED
            contact = contact.after(self.hears(), time.monotonic())
            if contact.is_lost(time.monotonic(), self.fence_s):
                return Ending.CUT_OFF
            time.sleep(_POLL_S)
        return Ending.STOPPED

    def _write_down(self, record: Record) -> None:
        self.record = record
        with suppress(OSError):  # a full disk is no reason to end a node
            record.write()


def _pass_on(child: subprocess.Popen[str], is_up: threading.Event) -> None:
    """Print what the child prints; tells when it says that the node is up."""
    assert child.stdout is not None
    for line in child.stdout:
        print(line, end="", flush=True)
        if ray_start_ray260.IS_UP in line:
            is_up.set()


def _raylet(marker: str) -> processes.Process | None:
    for process in processes.belonging(marker):
        with suppress(OSError):
            if Path(f"/proc/{process.pid}/comm").read_text().strip() == ray_start_ray260.RAYLET:
                return process
    return None


def _leave(child: subprocess.Popen[str]) -> None:
    """Let the node take leave of its cluster."""
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(_LEAVE_S)


def run(command: Sequence[str]) -> int:
    """Guard the node that `command` starts, until it is stopped. Raises: InputError: it starts none."""
    address = ray_start_ray260.gcs_address(command)
    fence_s = profiles.of_environment().fence_s
    probe_s = min(_PROBE_S, fence_s / 4)
    guard = Guard(ray_start_ray260.blocking(command), lambda: fencing.hears(address, probe_s), fence_s)
    signal.signal(signal.SIGTERM, guard.stop)
    signal.signal(signal.SIGINT, guard.stop)
    _say(f"guarding: {' '.join(command)}")
    return guard.run()


def start(command: Sequence[str]) -> None:
    """Start a guard that outlives the caller, in place of an earlier one; returns when its node is up.

    Raises:
        InputError: the command starts no worker node.
        ClusterError: the node did not come up; nothing of it is left.
    """
    ray_start_ray260.gcs_address(command)
    stop()
    home = settings.make_home()
    log_path = home / Record.path().with_suffix(".log").name
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "eagleray.cluster.guard", "run", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    mine = processes.of(process.pid)

    def found() -> bool:
        record = Record.read()
        is_up = record is not None and record.is_up and record.process.pid == mine.pid
        return is_up or process.poll() is not None

    if not processes.wait_until(found, timeout_s=_START_S, interval_s=0.1) or process.poll() is not None:
        stop()
        tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-12:])
        raise ClusterError(f"the node did not come up; {log_path} ends with:\n{tail}")
    print(f"the node is up; its guard is process {process.pid}, its log {log_path}")


def stop() -> None:
    """End this host's guard and its node, if there are any."""
    record = Record.read()
    if record is None:
        return
    processes.send(record.process, signal.SIGTERM)
    if not processes.wait_until(lambda: not record.process.is_alive, timeout_s=_STOP_S):
        processes.send(record.process, signal.SIGKILL)
    marker = (Record.read() or record).marker  # it may have started another node before it heard us
    if marker:
        processes.sweep(lambda: processes.belonging(marker), grace_s=0.0)
    Record.path().unlink(missing_ok=True)


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    try:
        match list(arguments):
            case ["run", "--", *command] if command:
                return run(command)
            case ["start", "--", *command] if command:
                start(command)
            case ["stop"]:
                stop()
            case _:
                raise InputError(f"expected one of:\n{(__doc__ or '').split(chr(10) * 2)[1]}")
    except EaglerayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _say(text: str) -> None:
    with suppress(OSError):  # a full disk must not end the guard
        print(f"{time.strftime('%H:%M:%S')} guard: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
