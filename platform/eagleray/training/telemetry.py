"""What a rank tells the run's driver: records in a bounded buffer that the driver drains as it polls.

A record is a small dictionary of JSON values; no rank waits for the driver, and a record that nobody
drains falls off the far end. `kind` is one of:

    phase        a point in time of the start-up: `name`
    step         since the last one: `loss` (where a step was taken), `learning_rate`, `num_steps`,
                 `skipped_steps` of them, `num_samples`, `seconds`; over all ranks `sent_bytes`,
                 `payload_bytes`, `uncompressed_bytes`, `probe_bytes`; of a rank, on average, `codec_seconds`,
                 `exchange_seconds` (waits for the network), `relative_error` of what was last sent
    compression  `auto` has chosen: `compressor`, `reason`, `predicted_s`, `measured_s`
    buckets      at each commit, of this rank: `buckets`, what was done with each of DDP's
    evaluation   `part`, its metrics, and the `seconds` that it took
    commit       a checkpoint was committed: `seconds` until it was on the disk, `blocked_s` of them the run
                 stood still for it; over all ranks `state_bytes`, sent for it
    unsaved      the ranks stop after `step` for the driver, and the storage did not take it
    lost         ranks were lost, and with them what compression still owed of theirs: `num_ranks`, about
                 which `share` of all that, and its `norm` (`compression.state.Lost`)
    note         a sentence for people: `text`
    at           where the rank was then: `step`; of the newest `at` call before another record or a drain
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Protocol

Record = dict[str, Any]


class Sink(Protocol):
    """Takes records."""

    def put(self, kind: str, **values: Any) -> None:
        """Add a record of now."""
        ...

    def at(self, step: int) -> None:
        """This step has just been taken."""
        ...


class Buffer:
    """A sink that keeps the newest 10,000 records until they are drained; safe between threads."""

    def __init__(self, capacity: int = 10_000):
        self._records: deque[Record] = deque(maxlen=capacity)
        self._at: Record | None = None

    def put(self, kind: str, **values: Any) -> None:
        """Add a record of now, after that of the newest step: they are in the order of their times."""
        self._keep_at()
        self._records.append({"kind": kind, "time": time.time(), **values})

    def at(self, step: int) -> None:
        """This step has just been taken: only the newest is kept, since all of them would be too many."""
        self._at = {"kind": "at", "time": time.time(), "step": step}

    def drain(self) -> list[Record]:
        """The records since the last call, oldest first."""
        drained: list[Record] = []
        self._keep_at()
        while self._records:
            drained.append(self._records.popleft())
        return drained

    def _keep_at(self) -> None:
        at, self._at = self._at, None
        if at is not None:
            self._records.append(at)


TOLD_BY_ALL = ("step", "evaluation", "compression")
"""Kinds that every rank records alike, so that another can tell what a rank 0 that was lost did not."""

BUFFER = Buffer()
"""This process's records."""


def drain() -> list[Record]:
    """This process's records since the last call (what the driver runs in the worker)."""
    return BUFFER.drain()
