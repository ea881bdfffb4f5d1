"""`python -m eagleray.cluster.supervisor FOLDER`: starts a cluster's head and restarts parts of it that end.

It adopts every orphan of the cluster (subreaper), so that it sees each end. Killing it ends nothing else: the
cluster goes on unsupervised, `status` says so, and `down` finds all processes by their marker.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from eagleray.cluster import processes, raylet_ray260, state
from eagleray.cluster.files import read_json, write_json

RAYLET = "raylet"
RESTARTED_ROLES = ("gcs_server", "monitor", "dashboard", "log_monitor", RAYLET)
_POLL_S = 0.1
_MAX_BACKOFF_S = 10.0
_SETTLED_S = 60.0
_LATEST_HELPERS_S = 60.0
"""Whoever ran `up` may have been killed before it could say that jobs are accepted."""


@dataclass
class Part:
    """A process of the head, and all that is needed to start it again."""

    process: processes.Process
    arguments: list[str]
    environment: dict[str, str]
    folder: str
    started_s: float = field(default_factory=time.monotonic)
    """Monotonic time at which it was last started, or first seen."""
    restarts: int = 0
    """In a row, each within a minute of the last."""
    restart_at_s: float = 0.0
    """Monotonic time; 0 while it runs."""
    child: subprocess.Popen[bytes] | None = None
    """Kept once restarted: dropped, it would take the exit status that `_reap` waits for."""
    is_helper: bool = False
    """It ends by itself, and is started again only where it fails."""


class Supervisor:
    """Keeps the head of one cluster alive until SIGTERM."""

    def __init__(self, cluster: state.ClusterState) -> None:
        self.cluster = cluster
        self.parts: dict[str, Part] = {}
        self.helpers: dict[str, list[str]] = read_json(cluster.directory / "helpers.json") or {}
        """Python arguments of those that wait for the cluster to accept jobs."""
        self.helpers_at_s = time.monotonic() + _LATEST_HELPERS_S
        self.is_stopping = False
        self.is_written_down = False

    def run(self) -> int:
        """Start the head, then watch it. Returns the exit status."""
        processes.become_subreaper()
        signal.signal(signal.SIGTERM, self._on_terminate)
        self._write_down()
        status = self._start_head()
        if status:
            return status
        self._adopt()
        while not self.is_stopping:
            self._reap()
            self._plan_helpers()
            self._restart_due()
            if not self.is_written_down:
                self._try_to_write_down()
            time.sleep(_POLL_S)
        return 0

    def _on_terminate(self, _number: int, _frame: FrameType | None) -> None:
        self.is_stopping = True

    def _start_head(self) -> int:
        """Run `head_main` to its end; its children become ours."""
        command = [sys.executable, "-m", "eagleray.cluster.head_main_ray260", str(self.cluster.directory)]
        environment = dict(os.environ, RAY_CLOUD_INSTANCE_ID="head", RAY_NODE_TYPE_NAME="head")
        status = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode
        if status:
            _say(f"head_main ended with {status}")
        return status

    def _adopt(self) -> None:
        """Learn from /proc how each part of the head was started."""
        for entry in read_json(self.cluster.directory / "head.json") or []:
            process = processes.Process(**entry)
            self.parts[process.role] = _part(process)
        self._write_down()
        _say("head: " + ", ".join(f"{role} {part.process.pid}" for role, part in self.parts.items()))

    def _plan_helpers(self) -> None:
        """Plan the start of the helpers once jobs are accepted; before, they would only slow that down."""
        folder = self.cluster.directory
        if not self.helpers or not (
            state.accepts_jobs_path(folder).exists() or time.monotonic() > self.helpers_at_s
        ):
            return
        for role, arguments in self.helpers.items():
            command = [sys.executable, *arguments, str(folder)]
            runtime_dir = str(self.cluster.runtime_dir)
            part = Part(processes.Process(0, 0, role), command, dict(os.environ), runtime_dir, is_helper=True)
            part.restart_at_s = time.monotonic()
            self.parts[role] = part
        self.helpers = {}

    def _reap(self) -> None:
        """Take the exit status of every child that ended; plan the restart of the head's parts."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            role = next((role for role, part in self.parts.items() if part.process.pid == pid), None)
            if role:
                self._ended(role, status)

    def _ended(self, role: str, status: int) -> None:
        part = self.parts[role]
        code = os.waitstatus_to_exitcode(status)
        if part.child:
            part.child.returncode = code
        if part.is_helper and code == 0:
            del self.parts[role]
            self.is_written_down = False
            _say(f"{role} is done")
            return
        if role not in RESTARTED_ROLES and not part.is_helper:
            _say(f"{role} ended ({code})")
            return
        if time.monotonic() - part.started_s > _SETTLED_S:
            part.restarts = 0
        wait_s = _plan_restart(part)
        _say(f"{role} ended ({code}); restarting it in {wait_s:.1f} s")

    def _restart_due(self) -> None:
        """Start again what has ended and waited long enough."""
        for role, part in self.parts.items():
            if part.restart_at_s and time.monotonic() >= part.restart_at_s:
                part.restarts, part.started_s, part.restart_at_s = part.restarts + 1, time.monotonic(), 0.0
                try:
                    part.process = self._restart(role, part)
                except (OSError, ValueError) as error:  # the other parts still need a supervisor
                    _say(f"cannot restart {role}: {error}; trying again in {_plan_restart(part):.1f} s")
                    continue
                self.is_written_down = False
                _say(f"{'started' if part.is_helper else 'restarted'} {role} as {part.process.pid}")

    def _restart(self, role: str, part: Part) -> processes.Process:
        if role == RAYLET:
            part.arguments = raylet_ray260.renew(part.arguments)
        name = f"{role}.log" if part.is_helper else f"{role}.restarted.log"
        with (self.cluster.logs_dir / name).open("ab") as log:
            part.child = subprocess.Popen(
                part.arguments,
                env=part.environment,
                cwd=part.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return processes.of(part.child.pid, role)

    def _write_down(self) -> None:
        """Write supervisor and head with pid and start time, for `status` and `find`."""
        found = [processes.this_process("supervisor"), *(part.process for part in self.parts.values())]
        write_json(self.cluster.directory / "processes.json", [vars(process) for process in found])
        self.is_written_down = True

    def _try_to_write_down(self) -> None:
        """Write down what runs; where that fails (a full disk), the next round tries again."""
        with suppress(OSError):
            self._write_down()


def _plan_restart(part: Part) -> float:
    """Set when `part` is to be started again; returns the wait in seconds, longer after each restart."""
    wait_s = min(_MAX_BACKOFF_S, 0.0 if part.restarts == 0 else 0.5 * 2**part.restarts)
    part.restart_at_s = time.monotonic() + wait_s + 1e-9
    return wait_s


def _part(process: processes.Process) -> Part:
    """The part that runs as `process`, as /proc describes it."""
    folder = Path(f"/proc/{process.pid}")
    pairs = (folder / "environ").read_bytes().decode(errors="surrogateescape").split("\0")
    arguments = (folder / "cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
    environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return Part(process, arguments[:-1], environment, str((folder / "cwd").readlink()))


def _say(text: str) -> None:
    with suppress(OSError):  # a full disk must not end the supervisor
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    found = state.read_path(Path(sys.argv[1]))
    assert found is not None, f"no cluster state in {sys.argv[1]}"
    sys.exit(Supervisor(found).run())
