"""Processes of one cluster: told apart by pid and start time, found by a marker in their environment.

A pid alone may belong to another process a second later; pid and start time may not. What a cluster started
is found again after any crash by the marker that every process inherits (/proc/PID/environ), and by descent
from one that carries it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MARKER = "EAGLERAY_CLUSTER_MARK"
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Process:
    """A process that ran at one time. `start` is its start time in clock ticks since boot."""

    pid: int
    start: int
    role: str = ""

    @property
    def is_alive(self) -> bool:
        """Whether exactly this process still runs (a zombie does not)."""
        return start_time(self.pid) == self.start


def this_process(role: str = "") -> Process:
    """The calling process."""
    return of(os.getpid(), role)


def of(pid: int, role: str = "") -> Process:
    """The process that has `pid` now; start 0 where there is none."""
    return Process(pid, start_time(pid) or 0, role)


def start_time(pid: int) -> int | None:
    """Clock ticks since boot at which `pid` started; None where it does not run."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; the command before it may hold blanks and parentheses."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def all_pids() -> list[int]:
    """Every pid that this user can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(pid: int) -> list[int]:
    """Pids whose parent is `pid`."""
    return [child for child in all_pids() if (fields := _stat(child)) and int(fields[1]) == pid]


def become_subreaper() -> None:
    """Make orphaned descendants of this process its own children, so that it sees them end."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def carries(pid: int, marker: str) -> bool:
    """Whether the process was started with our marker in its environment."""
    return _environment(pid).get(MARKER) == marker


def running(token_path: Path) -> list[Mapping[str, str]]:
    """Environments of live processes of the cluster whose token is in that file: each has its marker."""
    mine = os.path.realpath(token_path)
    found = [environment for pid in all_pids() if MARKER in (environment := _environment(pid))]
    return [one for one in found if os.path.realpath(one.get("RAY_AUTH_TOKEN_PATH", "")) == mine]


def _environment(pid: int) -> dict[str, str]:
    """With which it was started; empty where that cannot be read."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return {name: value for name, equals, value in (entry.partition("=") for entry in entries) if equals}


def belonging(marker: str) -> list[Process]:
    """Live processes that carry `marker` or descend from one that does; never the caller or its ancestors."""
    spared = _self_and_ancestors()
    parents = {pid: int(fields[1]) for pid in all_pids() if (fields := _stat(pid))}
    owned = {pid for pid in parents if pid not in spared and carries(pid, marker)}
    while found := {p for p, parent in parents.items() if parent in owned and p not in owned | spared}:
        owned |= found
    return [process for process in map(of, sorted(owned)) if process.start]


def _self_and_ancestors() -> set[int]:
    """The caller's pid and those of its parents."""
    pid, found = os.getpid(), set[int]()
    while pid > 0 and (fields := _stat(pid)):
        found.add(pid)
        pid = int(fields[1])
    return found


def send(process: Process, number: signal.Signals) -> None:
    """Signal exactly this process; nothing happens where it has ended or its pid is another's by now."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        if process.is_alive:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)


def sweep(find: Callable[[], list[Process]], *, grace_s: float = 1.0, limit_s: float = 20.0) -> list[Process]:
    """End everything that `find` lists: SIGTERM, `grace_s`, then SIGKILL until it lists nothing.

    It repeats because a process that is found may just have started another one.

    Returns:
        Every process that was found; one in an uninterruptible call may still run after `limit_s`.
    """
    seen: dict[tuple[int, int], Process] = {}
    began = time.monotonic()
    while left := find():
        elapsed = time.monotonic() - began
        if elapsed > limit_s:
            break
        for process in left:
            key = (process.pid, process.start)
            if elapsed >= grace_s or key not in seen:
                send(process, signal.SIGKILL if elapsed >= grace_s else signal.SIGTERM)
            seen[key] = process
        time.sleep(0.05)
    return list(seen.values())


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM pass unheard: a second one would leave half of what is being taken back."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals come to the main thread only
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            # None: whoever set it was not Python, and Python cannot set it again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def wait_until(condition: Callable[[], bool], *, timeout_s: float, interval_s: float = 0.05) -> bool:
    """Whether `condition` came true within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_s)
    return True
