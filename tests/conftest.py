"""What every test shares: tests that need root or a tool are skipped with a reason, and named at the end."""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Hypothesis' own limits on time (200 ms an example) would fail tests on a busy machine.
settings.register_profile("long", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("short", settings.get_profile("long"), max_examples=25)

BUDGET_S = {"unit": 30.0, "all": 345.0}
"""Design goals on 2 cores, printed at the end of a run."""
_TOOLS = {"ip": "iproute2"}
_spent_s: dict[str, float] = {}


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("short" if "not slow" in config.option.markexpr else "long")


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


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    started_s = time.perf_counter()
    yield
    part = item.path.relative_to(item.config.rootpath / "tests").parts[0]
    _spent_s[part] = _spent_s.get(part, 0.0) + time.perf_counter() - started_s


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    total_s = sum(_spent_s.values())
    parts = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in _spent_s.items())
    terminalreporter.write_line(
        f"time: {parts}; all {total_s:.0f} s (goals: unit {BUDGET_S['unit']:.0f}, all {BUDGET_S['all']:.0f})"
    )
    skipped = [
        report
        for report in terminalreporter.getreports("skipped")
        if "network namespaces" in str(report.longrepr)
    ]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} tests were skipped; to run them too: {' and '.join(_missing())}"
        )
