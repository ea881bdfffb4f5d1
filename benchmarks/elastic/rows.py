"""All rows by name, in the order in which they run: what each costs, and what it runs.

A row's module is imported in the row's own process only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One process of the benchmark."""

    name: str
    function: str
    """`module:function`; takes a `Teller`, the number of repetitions, and `arguments`."""
    reps: int
    limit_s: float
    """After which it is given up."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    has_cluster: bool = True
    """It is a driver of the benchmark's local cluster."""
    is_full: bool = False
    """Only with --full."""
    stage: str = ""
    """It runs beside its neighbours of the same stage, and alone where it has none: as all that is timed."""


TWO_ONE: Mapping[str, Any] = {"large": 2, "small": 1}
FOUR_TWO: Mapping[str, Any] = {"large": 4, "small": 2}
RESTART: Mapping[str, Any] = {"on_change": "restart"}
_ALL = (
    Row("resize_2_1", "resizes:resize", 10, 480, {**TWO_ONE, "own_core": True}),
    Row("resize_4_2", "resizes:resize", 5, 480, FOUR_TWO),
    Row("worker", "losses:worker", 10, 420),
    Row("node", "losses:node", 10, 600),
    Row("claim", "claims:claim", 10, 600),
    Row("hang", "losses:hang", 10, 480),
    Row("spare", "losses:spare", 10, 420),
    Row("gcs", "losses:gcs", 10, 480, stage="nothing lost"),
    Row("policy", "exact:policy", 10, 900, has_cluster=False, stage="nothing lost"),
    Row("weights", "exact:weights", 1, 600, stage="exact"),
    Row("bits", "exact:bits", 1, 600, stage="exact"),
    Row("partition", "partition:partition", 10, 900, has_cluster=False),
    Row("checkpoint", "checkpoints:checkpoint", 12, 240, has_cluster=False),
    Row("floor", "floor:floor", 2, 240, has_cluster=False),
    Row("resize_2_1_stock", "stock:resize", 3, 300, TWO_ONE),
    Row("worker_stock", "stock:worker", 3, 300),
    Row("resize_4_2_stock", "stock:resize", 3, 400, FOUR_TWO),
    Row("resize_2_1_restart", "resizes:resize", 2, 400, {**TWO_ONE, **RESTART}, is_full=True),
    Row("resize_4_2_restart", "resizes:resize", 2, 600, {**FOUR_TWO, **RESTART}, is_full=True),
    Row("schedules", "faults:schedules", 5, 3600, is_full=True),
    Row("storm", "faults:storm", 1, 1500, is_full=True),
)
"""Those that say most come first; then what is counted and not timed, and what others are measured for.

A resize's repetition is two changes, one down and one up; stock's is one change.
"""
ROWS: Mapping[str, Row] = {row.name: row for row in _ALL}


def stages(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in their order: one after the other, but neighbours of one stage beside each other."""
    found: list[list[Row]] = []
    for row in rows:
        if found and row.stage and row.stage == found[-1][-1].stage:
            found[-1].append(row)
        else:
            found.append([row])
    return found
