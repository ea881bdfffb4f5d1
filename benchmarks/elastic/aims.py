"""The table "How good" of elasticity: what each row has to reach, and whether it does. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kit.results import values_of

Repetition = Mapping[str, Any]


@dataclass(frozen=True)
class Aim:
    """One line of the table."""

    row: str
    """Name of the row that measures it (`rows.ROWS`)."""
    what: str
    key: str
    """Of a repetition."""
    goal: float | str | None
    """Not more than that; a name: the row's own fact of that name; None: only told."""
    unit: Literal["s", "%", ""] = "s"
    worst: float | None = None
    """Not more than that in any repetition."""
    binds: Literal["median", "worst"] = "median"
    at_least: bool = False
    """The goal is a lower bound."""
    stock: str = ""
    """What was measured of stock Ray 2.60 before (research/platform.md), in words."""
    beside: tuple[str, ...] = ()
    """Rows of this run that measured the same key of something else: stock Ray, a restart."""


STOCK, RESTART = "stock", "restart"
NOTHING_LOST: dict[str, Any] = {"goal": 0, "unit": "", "binds": "worst"}
AIMS: tuple[Aim, ...] = (
    Aim(
        "resize_2_1", "planned resize, world 2 <-> 1: pause", "pause_s", 1.3,
        stock="10–14 s", beside=("resize_2_1_restart", "resize_2_1_stock"),
    ),
    Aim(
        "resize_2_1", "planned resize, world 2 <-> 1: steps lost", "lost", **NOTHING_LOST,
        stock="up to an interval", beside=("resize_2_1_restart", "resize_2_1_stock"),
    ),
    Aim(
        "resize_4_2", "planned resize, world 4 <-> 2: pause", "pause_s", 2.0,
        stock="21–46 s", beside=("resize_4_2_restart", "resize_4_2_stock"),
    ),
    Aim(
        "resize_4_2", "planned resize, world 4 <-> 2: steps lost", "lost", **NOTHING_LOST,
        stock="up to an interval", beside=("resize_4_2_restart", "resize_4_2_stock"),
    ),
    Aim(
        "worker", "worker killed -> next new step", "recovery_s", 1.5, worst=3.0,
        stock="10–33 s", beside=("worker_stock",),
    ),
    Aim(
        "worker", "worker killed: steps redone", "lost", **NOTHING_LOST,
        stock="an interval", beside=("worker_stock",),
    ),
    Aim("spare", "worker killed, a warmed spare -> next new step at full size", "recovery_s", 2.0, stock="-"),
    Aim("node", "node killed -> next new step", "recovery_s", 3.0, worst=5.0, stock="69.8 s"),
    Aim("node", "node killed: steps redone", "lost", **NOTHING_LOST, stock="an interval"),
    Aim("hang", "hung worker (profile fast): found, ended, training again", "recovery_s", 5.0, stock="600 s"),
    Aim("partition", "host cut off: the rest goes on", "recovery_s", 12.0, stock="65 s"),
    Aim("partition", "host cut off: commits by the stale side", "stale_commits", **NOTHING_LOST, stock=""),
    Aim("partition", "host cut off: its processes have ended", "fenced_s", 12.0, stock="never"),
    Aim("partition", "the cut heals -> the host is back by itself", "back_s", None, stock="never"),
    Aim("gcs", "GCS killed: training steps lost", "lost", **NOTHING_LOST, stock="cluster lost"),
    Aim("gcs", "GCS killed: failed requests", "failed", **NOTHING_LOST, stock="cluster lost"),
    Aim(
        "resize_2_1", "growth by one worker: slow-down meanwhile", "slower", 0.15, unit="%",
        stock="stops",
    ),
    Aim(
        "checkpoint", "a commit holds the step up, of the time of one that is waited for", "share", 0.05,
        unit="%", stock="-",
    ),
    Aim(
        "weights", "weights after 20 planned resizes (float64), relative", "difference", 1e-9,
        unit="", binds="worst", stock="-",
    ),
    Aim("bits", "kill and resume at one size, float32: bytes that differ", "different", **NOTHING_LOST),
    Aim("policy", "random claim schedules: deadlock, over-grant, starved floor", "broken", **NOTHING_LOST),
    Aim(
        "claim", "yield notice -> the node's resources free", "free_s", "two steps + a commit + 0.3 s",
        stock="never by itself",
    ),
    Aim("claim", "claim by a replica -> it answers", "answer_s", 8.0, stock="never"),
    Aim("schedules", "random resizes and kills: samples lost or repeated", "wrong_samples", **NOTHING_LOST),
    Aim("storm", "fault storm: goodput", "goodput", 0.8, unit="%", at_least=True),
    Aim("storm", "fault storm: samples lost or repeated", "wrong_samples", **NOTHING_LOST),
    Aim("floor", "floor: 1 process imports ray and torch", "one_s", None),
    Aim("floor", "floor: 2 processes at once", "two_s", None),
    Aim("floor", "floor: 4 processes at once", "four_s", None),
)  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """An aim and what was measured of it."""

    aim: Aim
    goal: float | None
    values: Sequence[float]
    is_met: bool | None
    """None where nothing was measured, or nothing was to be reached."""
    beside: Mapping[str, float]
    """Median by row."""

    @property
    def median(self) -> float:
        """Of the values."""
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        """The 95th percentile: of few values, the one that 95 % of them do not exceed."""
        return percentile(self.values, 0.95)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def judge(aim: Aim, rows: Mapping[str, Mapping[str, Any]]) -> Judged:
    """Compare an aim with what its row measured; `rows` are results by name."""
    row = rows.get(aim.row)
    values = values_of(row, aim.key)
    goal = (row or {}).get("facts", {}).get(aim.goal) if isinstance(aim.goal, str) else aim.goal
    beside = {
        name: statistics.median(found) for name in aim.beside if (found := values_of(rows.get(name), aim.key))
    }
    is_met = None
    if values and goal is not None:
        bound = max(values) if aim.binds == "worst" else statistics.median(values)
        is_met = bound >= goal if aim.at_least else bound <= goal
        if aim.worst is not None:
            is_met = is_met and max(values) <= aim.worst
        is_met = is_met and not (row or {}).get("failure")
    return Judged(aim, goal, values, is_met, beside)
