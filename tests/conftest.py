"""What every test shares: who runs beside whom, skips for lack of root or a tool, times at the end."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import HealthCheck, settings

# Hypothesis' own limits on time (200 ms an example) would fail tests on a busy machine.
settings.register_profile("long", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("short", settings.get_profile("long"), max_examples=25)

MAX_WORKERS = 4
"""Processes of `-n auto`: each imports torch and Ray, seconds and 0.5 GiB."""
_TOOLS = {"ip": "iproute2"}
_spent_s: dict[str, float] = {}


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("short" if "not slow" in config.option.markexpr else "long")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many as cores may be used here; xdist itself would count those of the machine."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Called by xdist for each worker, in the process that starts them."""
    node.workerinput["places"] = _folder().name


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="eagleray-places-")


def _missing() -> list[str]:
    """What the tests marked `root` lack here, as commands or conditions."""
    lacking = [] if os.geteuid() == 0 else ["run as root (sudo make test)"]
    return lacking + [
        f"apt install {package}" for tool, package in _TOOLS.items() if shutil.which(tool) is None
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if missing := _missing():
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason=f"needs network namespaces: {', '.join(missing)}"))


def pytest_collection_finish() -> None:
    """What is imported now stays: the collector need not look at it, nor after each 700 objects more."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Where workers run tests at once: one marked `alone` waits for the others, and they wait for it."""
    if (folder := getattr(item.config, "workerinput", {}).get("places")) is None:
        return (yield)
    with _place(folder, is_alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def _place(folder: str, *, is_alone: bool) -> Iterator[None]:
    """A place in the room, or all of it. Who waits for all holds the door: nobody else comes in before."""
    door, room = _lock(folder, "door"), _lock(folder, "room")
    fcntl.flock(door, fcntl.LOCK_EX)
    try:
        fcntl.flock(room, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
    finally:
        fcntl.flock(door, fcntl.LOCK_UN)
    try:
        yield
    finally:
        fcntl.flock(room, fcntl.LOCK_UN)  # not by closing: a forked process may have it open, too


@cache
def _lock(folder: str, name: str) -> IO[str]:
    return Path(folder, name).open("a")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    part = Path(report.nodeid).parts[1]
    _spent_s[part] = _spent_s.get(part, 0.0) + report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    parts = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in _spent_s.items())
    workers = getattr(config.option, "numprocesses", None) or 1
    if parts:
        terminalreporter.write_line(f"time of tests: {parts}" + f", in {workers} processes" * (workers > 1))
    skipped = [
        report
        for report in terminalreporter.getreports("skipped")
        if "network namespaces" in str(report.longrepr)
    ]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} tests were skipped; to run them too: {' and '.join(_missing())}"
        )
