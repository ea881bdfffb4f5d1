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
    is_timed: bool = True
    """If not, it runs beside its neighbours that are not, either."""


TWO_ONE: Mapping[str, Any] = {"large": 2, "small": 1}
FOUR_TWO: Mapping[str, Any] = {"large": 4, "small": 2}
_ALL = (
    Row("floor", "floor:floor", 3, 240, has_cluster=False),
    Row("resize_2_1", "resizes:resize", 10, 480, {**TWO_ONE, "own_core": True}),
    Row("resize_2_1_restart", "resizes:resize", 2, 400, {**TWO_ONE, "on_change": "restart"}, is_full=True),
    Row("resize_2_1_stock", "stock:resize", 1, 400, TWO_ONE),
    Row("gcs", "losses:gcs", 10, 480),
    Row("worker", "losses:worker", 10, 420),
    Row("worker_stock", "stock:worker", 1, 400),
    Row("spare", "losses:spare", 10, 420),
    Row("hang", "losses:hang", 10, 480),
    Row("node", "losses:node", 10, 600),
    Row("resize_4_2", "resizes:resize", 5, 480, FOUR_TWO),
    Row("resize_4_2_restart", "resizes:resize", 2, 600, {**FOUR_TWO, "on_change": "restart"}, is_full=True),
    Row("resize_4_2_stock", "stock:resize", 1, 500, FOUR_TWO, is_full=True),
    Row("claim", "claims:claim", 10, 600),
    Row("weights", "exact:weights", 1, 600, is_timed=False),
    Row("policy", "exact:policy", 10, 900, is_timed=False),
    Row("bits", "exact:bits", 1, 420),
    Row("partition", "partition:partition", 10, 600, has_cluster=False),
    Row("schedules", "faults:schedules", 5, 3600, is_full=True),
    Row("storm", "faults:storm", 1, 1500, is_full=True),
)
"""A resize's repetition is two changes, one down and one up."""
ROWS: Mapping[str, Row] = {row.name: row for row in _ALL}


def stages(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in their order: one after the other, but those that are not timed beside each other."""
    found: list[list[Row]] = []
    for row in rows:
        if found and not row.is_timed and not found[-1][-1].is_timed:
            found[-1].append(row)
        else:
            found.append([row])
    return found
