"""What a run's driver is told while it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from eagleray.training.telemetry import Record


@dataclass(frozen=True)
class WorkerInfo:
    """One rank of an attempt."""

    rank: int
    node_id: str
    pid: int
    node_ip: str


@dataclass(frozen=True)
class Change:
    """A formation of a run's workers, as it was ordered."""

    number: int
    """The attempt's."""
    workers: Sequence[WorkerInfo]
    """By rank."""
    num_before: int
    """How many there were; 0: all of them are new."""
    lost: Mapping[int, tuple[WorkerInfo, str]]
    """By rank before: who was lost, and why."""
    time: float
    """When it was ordered, seconds since the epoch, as all times here."""
    left_at: float | None = None
    """When the formation before was asked to stop, or given up; None: there was none."""


START = -1
"""Stands for a rank where a start of the workers failed, or the controller."""


class Observer(Protocol):
    """Hears of a run; called in the driver, by the thread that runs it."""

    def changed(self, change: Change) -> None:
        """Workers form a group: at the start, at another size, or after a loss."""
        ...

    def records(self, records: Sequence[Record]) -> None:
        """Rank 0 recorded these, oldest first."""
        ...

    def failed(self, failures: Mapping[int, Exception], is_retried: bool) -> None:
        """Ranks failed (or START); they are started again, or not."""
        ...
