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


START = -1
"""Stands for a rank where a start of the workers failed, or the controller."""


class Observer(Protocol):
    """Hears of a run; called in the driver, by the thread that runs it."""

    def started(self, attempt: int, workers: Sequence[WorkerInfo]) -> None:
        """The workers of an attempt are up."""
        ...

    def records(self, records: Sequence[Record]) -> None:
        """Rank 0 recorded these, oldest first."""
        ...

    def failed(self, failures: Mapping[int, Exception], is_retried: bool) -> None:
        """Ranks failed (or START); they are started again, or not."""
        ...
