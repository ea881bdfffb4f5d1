"""When a loop looks on for what comes soon, and when it goes to sleep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from eagleray.serving.link import waking
from eagleray.serving.link.waking import LONGEST_S, Awake


class Loop:
    """Turns when a test says so; its clock is the test's."""

    def __init__(self) -> None:
        self.now_s, self.is_open = 100.0, True
        self.soon: list[Callable[[], object]] = []
        self.awake = Awake(cast("Any", self), lambda: self.is_open, is_allowed=True, clock=lambda: self.now_s)

    def call_soon(self, work: Callable[[], object]) -> None:
        self.soon.append(work)

    def turns(self, until_s: float, step_s: float = 1e-6) -> int:
        """How often it turned without sleeping until then."""
        count = 0
        while self.soon and self.now_s < until_s:
            self.now_s += step_s
            count += 1
            [work] = self.soon
            self.soon = []
            work()
        return count

    def waits(self, seconds: float, times: int = 1) -> int:
        """So often something is waited for, and comes after so long; turns of the last time."""
        count = 0
        for _ in range(times):
            self.awake.expect()
            until_s = self.now_s + seconds
            count = self.turns(until_s)
            self.now_s = until_s
            self.awake.came()
            self.turns(until_s + 1)
        return count


def test_it_sleeps_until_what_it_waits_for_has_come_soon_for_a_while() -> None:
    loop = Loop()
    assert [loop.waits(50e-6) for _ in range(5)] == [0] * 5
    assert loop.waits(50e-6, 30) > 40
    assert loop.awake.usual_s == pytest.approx(50e-6, rel=0.5)


def test_it_looks_on_for_twice_the_usual_time_at_most() -> None:
    loop = Loop()
    loop.waits(50e-6, 60)
    usual_s = loop.awake.usual_s
    assert loop.waits(1.0) <= 2 * usual_s / 1e-6 + 2


def test_after_a_pause_it_is_awake_again_soon_and_where_all_is_slow_never() -> None:
    loop = Loop()
    loop.waits(50e-6, 60)
    loop.waits(1e6)
    assert loop.waits(50e-6, 3) > 40, "one pause says nothing of what comes after it"
    loop.waits(1.0, 10)
    assert loop.waits(50e-6) == 0
    assert loop.waits(2 * LONGEST_S, 100) == 0


def test_nothing_is_looked_on_for_that_is_not_expected_any_more() -> None:
    loop = Loop()
    loop.waits(50e-6, 60)
    loop.is_open = False
    assert loop.waits(50e-6) == 1
    loop.awake.came()
    loop.awake.expect()
    loop.awake.expect()
    assert len(loop.soon) == 1


@pytest.mark.parametrize(
    ("affinity", "quota", "may"),
    [
        ({0, 1}, "max 100000", True),
        ({0}, "max 100000", False),
        ({0, 1, 2}, "150000 100000", False),
        ({0, 1, 2}, "200000 100000\n", True),
        ({0, 1}, None, True),
        ({0, 1}, "what", True),
    ],
)
def test_a_process_with_one_cpu_leaves_it_to_others(monkeypatch, tmp_path, affinity, quota, may) -> None:
    monkeypatch.setattr(waking.os, "sched_getaffinity", lambda _: affinity)
    monkeypatch.setattr(waking, "_CPU_MAX", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert waking.has_spare_cpus() is may
    loop = Loop()
    loop.awake = Awake(cast("Any", loop), lambda: True, clock=lambda: loop.now_s)
    loop.waits(50e-6, 60)
    assert (loop.waits(50e-6) > 0) is may
