"""Servers as processes: started on a port, and ended with all that they started; what /proc says of any."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import place  # first: it says where eagleray is

from eagleray.cluster import processes

HOST = "127.0.0.1"
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_GRACE_S = 5.0


class NotRunning(Exception):
    """A process ended, or did not listen in time; the message has the end of its log."""


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class Server:
    """A process that listens on a port, from `start` to `stop`."""

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        port: int,
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        short_folder: bool = False,
    ) -> None:
        """Nothing has been started. `env` goes over this process's environment.

        With `short_folder`, BENCH_SHORT_FOLDER names a folder with a short path while it runs.
        """
        self.name, self.port = name, port
        self._wants_short_folder = short_folder
        self._short_folder: str | None = None
        self._words, self._log, self._cwd = list(words), log, cwd
        self._marker = f"{place.mark()}-{secrets.token_hex(6)}"
        mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        # SPT_NOENV: setproctitle would overwrite the environment, and the marker with it.
        self._env = {**mine, **(env or {}), processes.MARKER: self._marker, "SPT_NOENV": "1"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, limit_s: float = 60.0) -> None:
        """Return when it listens. Raises: NotRunning."""
        if self._wants_short_folder:
            self._short_folder = tempfile.mkdtemp(prefix="er-", dir="/tmp")
            self._env["BENCH_SHORT_FOLDER"] = self._short_folder
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                self._words,
                env=self._env,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + limit_s
        while not is_listening(self.port):
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                self.stop()
                said = f"does not listen after {limit_s:.0f} s" if code is None else f"ended with code {code}"
                raise NotRunning(f"{self.name} {said}; its log ends with:\n{self.tail()}")
            time.sleep(0.1)

    def tail(self, lines: int = 12) -> str:
        """The end of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """End it, and every process that it started."""
        if self._process is not None:
            process, self._process = self._process, None
            processes.sweep(lambda: processes.belonging(self._marker), grace_s=_GRACE_S)
            process.wait()
        if self._short_folder is not None:
            shutil.rmtree(self._short_folder, ignore_errors=True)

    @contextlib.contextmanager
    def running(self, limit_s: float = 60.0) -> Iterator[Server]:
        """Started, and stopped at the end of the block."""
        try:
            self.start(limit_s)
            yield self
        finally:
            self.stop()


def is_listening(port: int) -> bool:
    """Whether a connection to it is taken."""
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


# ---- what /proc says


def cpu_s(pids: Iterable[int]) -> float:
    """Seconds of CPU time that they have taken, together; those that are gone count nothing."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) * _TICK_S
    return total


def rss_bytes(pid: int) -> int | None:
    """Memory in use, of its own and shared; None where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return None


def descriptors(pid: int) -> list[str] | None:
    """What its open file descriptors lead to; None where it is gone."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return None
    found = []
    for name in names:
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def command(pid: int) -> str:
    """Its title, or its command line; empty where it is gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return b" ".join(words).decode(errors="replace").strip()


def shared_memory() -> dict[str, int]:
    """Files in /dev/shm, and how many bytes of each are in use."""
    found = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir("/dev/shm"):
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False):
                    found[entry.name] = entry.stat(follow_symlinks=False).st_blocks * 512
    return found


def listeners(port: int) -> list[int]:
    """Processes that listen on a TCP port of this machine."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    return [pid for pid in processes.all_pids() if sockets.intersection(descriptors(pid) or ())]
