"""What a run's observer hears, and in which order: changes of the workers, and records of rank 0."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group.worker import Worker

from eagleray.training.membership_ray260 import Membership
from eagleray.training.observer import Change, Observer
from eagleray.training.telemetry import TOLD_BY_ALL, Record, drain

LAST_WORDS_S = 0.5
"""How long a worker that is about to be ended may take to tell its last records."""


@dataclass(frozen=True)
class _LastWords:
    """Of a worker that has been ended since."""

    records: Sequence[Record]


class Watch(WorkerGroupCallback):
    """Carries what happens to the observer: changes of the workers, and records from rank 0.

    In Ray Train's thread; the membership's own thread only leaves its changes here.
    """

    def __init__(self, observer: Observer, membership: Membership):
        self._observer, self._membership = observer, membership
        self._news: queue.SimpleQueue[Change | Record | _LastWords] = queue.SimpleQueue()
        self._pending: tuple[Any, Any] | None = None
        """Whom rank 0's records were asked of, and the answer on its way."""
        self._seen: dict[str, int] = {}
        """By kind of record, the last step of one: a new rank 0 tells again what the old one told."""
        self.has_stepped = False
        """Whether the workers have told of a step since Ray Train started them."""

    def note(self, news: Change | Record) -> None:
        """Take what the membership tells, from any thread."""
        self._news.put(news)

    def part(self, worker: Worker) -> None:
        """Have the records of a rank 0 that is about to be ended; from any thread."""
        answer: Any = worker.execute_async(drain)
        with suppress(RayError, TimeoutError):  # then it is as where it ends by itself
            self._news.put(_LastWords(ray.get(answer, timeout=LAST_WORDS_S)))

    def after_worker_group_start(self, worker_group: Any) -> None:
        """All workers are new."""
        self._pending, self.has_stepped = None, False
        self._seen.clear()

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Hand over what rank 0 has recorded since the last poll, without waiting for it."""
        if self._pending is not None:
            done, _ = ray.wait([self._pending[1]], timeout=0)
            if done:
                self._collect()
        self._hand_over_news()
        if self._pending is None:
            self._ask()

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Hand over the last records, if rank 0 still answers."""
        self._collect()
        self._hand_over_news()
        self._ask()
        self._collect()

    def _ask(self) -> None:
        with self._membership.lock:
            members = self._membership.members
            rank_0 = members[0].worker if members else None
        if rank_0 is not None:
            self._pending = rank_0, rank_0.execute_async(drain)

    def _collect(self) -> None:
        """Wait for what was asked of rank 0, and hand it over."""
        self._hand_over_news(self._answer())

    def _answer(self) -> list[Record]:
        if self._pending is None:
            return []
        pending, self._pending = self._pending, None
        try:
            return ray.get(pending[1], timeout=2)
        except (RayError, TimeoutError):
            return []  # it is gone; what it told nobody, the others tell, or is in the checkpoint

    def _is_new(self, record: Record) -> bool:
        kind = record["kind"]
        if kind not in TOLD_BY_ALL:
            return True
        step = record["step"]
        if step <= self._seen.get(kind, -1):
            return False
        self._seen[kind] = step
        return True

    def _hand_over_news(self, records: Sequence[Record] = ()) -> None:
        """Hand over what the membership told, and then rank 0's `records`.

        A formation is ordered before it tells of itself. Last words come after what was told before them.
        """
        while True:
            try:
                news = self._news.get_nowait()
            except queue.Empty:
                break
            if isinstance(news, Change):
                self._observer.changed(news)
            elif isinstance(news, _LastWords):
                self._hand_over([*records, *self._answer(), *news.records])
                records = ()
            else:
                self._observer.records([news])
        self._hand_over(records)

    def _hand_over(self, records: Sequence[Record]) -> None:
        records = [record for record in records if self._is_new(record)]
        if records:
            self.has_stepped |= any(record["kind"] == "at" for record in records)
            self._observer.records(records)
