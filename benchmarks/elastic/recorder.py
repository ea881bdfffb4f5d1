"""An observer that keeps what a run's driver is told, and lets a row wait for what it looks for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from kit.results import RowFailed
from passages import Passage, Record, passage

from eagleray.training.observer import Change

T = TypeVar("T")


class Recorder:
    """See the module. `take_change` and `take_records` may be called by any thread."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.all_records: list[Record] = []
        self.failures: list[str] = []
        self._news = threading.Condition()
        self._error: str | None = None

    # The run's side (`training.observer`)

    def changed(self, change: Change) -> None:
        """Workers form a group."""
        with self._news:
            self.changes.append(change)
            self._news.notify_all()

    def records(self, records: Sequence[Record]) -> None:
        """Rank 0 recorded these."""
        with self._news:
            self.all_records.extend(records)
            self._news.notify_all()

    def failed(self, failures: Mapping[int, Exception], is_retried: bool) -> None:
        """Ranks failed, and are all started again, or not."""
        said = "; ".join(f"rank {rank}: {failure}" for rank, failure in failures.items())
        with self._news:
            self.failures.append(said)
            self._news.notify_all()

    def ended(self, error: str) -> None:
        """The run is over, and nothing more will be told."""
        with self._news:
            self._error = error
            self._news.notify_all()

    # The row's side

    def until(self, found: Callable[[], T | None], what: str, limit_s: float) -> T:
        """What `found` gives as soon as it gives anything but None or False.

        Raises: RowFailed: it did not within `limit_s`, or the run ended; the text says where the run was.
        """
        deadline = time.monotonic() + limit_s
        with self._news:
            while True:
                value = found()
                if value is not None and value is not False:
                    return value
                if self._error is not None:
                    raise RowFailed(f"waiting for {what}: the run ended: {self._error}; {self.describe()}")
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise RowFailed(f"no {what} within {limit_s:.0f} s; {self.describe()}")
                self._news.wait(min(left_s, 0.2))

    def describe(self) -> str:
        """Where the run is, for a message."""
        change = self.changes[-1] if self.changes else None
        size = "no formation yet" if change is None else f"formation {change.number} of {len(change.workers)}"
        lost = "" if change is None or not change.lost else f", after losing {sorted(change.lost)}"
        failures = f"; failures: {self.failures}" if self.failures else ""
        return f"{size}{lost}, step {self.step}{failures}"

    @property
    def step(self) -> int:
        """The newest that was told of."""
        found = (one["step"] for one in reversed(self.all_records) if one["kind"] in ("at", "step"))
        return next(found, 0)

    @property
    def size(self) -> int:
        """Workers of the formation."""
        return len(self.changes[-1].workers) if self.changes else 0

    def passage_after(self, number: int, limit_s: float, what: str) -> Passage:
        """The first passage to a formation beyond the one of that number."""

        def found() -> Passage | None:
            change = next((one for one in self.changes if one.number > number), None)
            return None if change is None else passage(change, self.all_records)

        return self.until(found, what, limit_s)

    def settled(self, size: int, limit_s: float, steps: int) -> None:
        """Return when the formation has so many workers, and has taken some steps."""

        def found() -> bool:
            if self.size != size:
                return False
            gone = passage(self.changes[-1], self.all_records)
            return gone is not None and self.step >= gone.step + steps

        self.until(found, f"formation of {size} that takes {steps} steps", limit_s)
