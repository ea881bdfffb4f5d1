"""`RunLock`: one driver at a time has a run, or a search.

    <run>/drivers/000002.json     who it is (machine, process, job), and when it was last heard of

A driver takes a run by creating the next number, which the storage gives to one alone. Whether an earlier
one still lives is known on its own machine from the process table, elsewhere from its sign of life. One that
was cut off from the storage until another had the run ends when it sees that.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType

from eagleray.cluster import processes
from eagleray.errors import InputError, TakenOver
from eagleray.packaging import Folder
from eagleray.workflows.stopping import stop_this_process

HEARTBEAT_S = 10.0
SILENT_S = 60.0
"""A driver on another machine that was not heard of for so long is taken to be gone."""


@dataclass(frozen=True)
class Driver:
    """The process that has, or had, a run."""

    host: str
    machine: str
    """Kernel boot and process namespace: a pid means the same process only within one."""
    pid: int
    start: int
    """Start time of the process, clock ticks since boot."""
    job: str | None
    """Ray's submission id."""
    heard_at: float
    """Seconds since the epoch."""
    is_over: bool = False

    @classmethod
    def this(cls, job: str | None) -> Driver:
        """The calling process."""
        me = processes.this_process()
        return cls(socket.gethostname(), _machine(), me.pid, me.start, job, time.time())

    def is_alive(self, now: float) -> bool:
        """Whether it still has the run."""
        if self.is_over:
            return False
        if self.machine == _machine():
            return processes.Process(self.pid, self.start).is_alive
        return now - self.heard_at < SILENT_S

    def __str__(self) -> str:
        job = f"job {self.job}, " if self.job else ""
        return f"{job}process {self.pid} on {self.host}"


class RunLock:
    """The run (or the search, by its `noun`) in `folder` belongs to this process while the block lasts.

    Raises:
        InputError: another driver has it (on entering).
        TakenOver: another driver has taken it, which did not hear of this one; `end` has ended the block.
    """

    def __init__(
        self,
        folder: Folder,
        job: str | None = None,
        *,
        noun: str = "run",
        heartbeat_s: float = HEARTBEAT_S,
        end: Callable[[], object] = stop_this_process,
    ) -> None:
        self._folder, self._job, self._heartbeat_s = folder, job, heartbeat_s
        self._noun, self._end = noun, end
        self._number, self._name = 0, ""
        self._taken_by: str | None = None
        """Another driver, in words, that has the run now."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)

    def __enter__(self) -> RunLock:
        number, driver = self._last()
        if driver is not None and driver.is_alive(time.time()):
            raise InputError(self._refusal(driver))
        self._number = number + 1
        self._name = f"drivers/{self._number:06d}.json"
        if not self._folder.create(self._name, _to_bytes(Driver.this(self._job))):
            _, driver = self._last()
            raise InputError(self._refusal(driver))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._write(is_over=True)
        if self._taken_by is not None and isinstance(error, KeyboardInterrupt):
            raise TakenOver(
                f"{self._noun} {self._id} was taken over by {self._taken_by}: this driver could not write to "
                f"{self._folder.url} for {SILENT_S:.0f} s, and was taken to be gone"
            ) from error

    @property
    def _id(self) -> str:
        return self._folder.url.rsplit("/", 1)[-1]

    def _last(self) -> tuple[int, Driver | None]:
        names = [name for name in self._folder.child("drivers").list() if not name.startswith(".")]
        if not names:
            return 0, None
        return int(Path(names[-1]).stem), _driver(self._folder.read_bytes(f"drivers/{names[-1]}"))

    def _refusal(self, driver: Driver | None) -> str:
        end = f"eagleray stop {driver.job}" if driver is not None and driver.job else "end that process"
        since = "" if driver is None or driver.machine == _machine() else _silence(driver)
        return (
            f"{self._noun} {self._id} goes on already "
            f"({driver or 'another driver has just taken it'}{since}); "
            f"wait until it ends, or {end} and try again"
        )

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat_s):
            self._write(is_over=False)
            with contextlib.suppress(OSError, ValueError):
                number, driver = self._last()
                if number > self._number:
                    self._taken_by = "another driver" if driver is None else str(driver)
                    self._end()
                    return

    def _write(self, *, is_over: bool) -> None:
        """A sign of life; where the storage is away, the next one will do."""
        with contextlib.suppress(OSError):
            self._folder.write_bytes(self._name, _to_bytes(replace(Driver.this(self._job), is_over=is_over)))


def _silence(driver: Driver) -> str:
    silent_s = time.time() - driver.heard_at
    return f", heard of {silent_s:.0f} s ago; without a word of it for {SILENT_S:.0f} s it counts as gone"


def _driver(content: bytes) -> Driver | None:
    """What `_to_bytes` wrote; None where it is damaged, or of a version that says more."""
    try:
        found = json.loads(content)
        return Driver(**{field.name: found[field.name] for field in fields(Driver) if field.name in found})
    except (ValueError, TypeError):
        return None


def _to_bytes(driver: Driver) -> bytes:
    return (json.dumps(asdict(driver), indent=2) + "\n").encode()


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
