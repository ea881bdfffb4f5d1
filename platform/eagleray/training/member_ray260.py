"""A worker of a run, as the driver knows it: what it has told, and whether there is hope for it."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from ray.train.v2._internal.execution.worker_group.worker import Worker

from eagleray.training.ending_ray260 import end_process
from eagleray.training.observer import WorkerInfo
from eagleray.training.patience import SLOW_FACTOR
from eagleray.training.seat_ray260 import Seat
from eagleray.training.station import COMMIT, JUDGED, STEP, UPDATE, Formation, News

PREPARE_SILENCE_S = 60.0
"""For a worker that reads its data: code that holds the interpreter lock meanwhile lets it answer nobody."""
AWAITED_S = 120.0
"""So long the others wait for a rank of which nobody knows yet how long it needs: first steps warm caches and
compile, and so does a first evaluation."""
STORAGE_S = 600.0
"""So long they wait for one that commits: what it waits for is the storage, which hangs for all alike."""


@dataclass(eq=False)
class Member:
    """A worker of the run, in the formation or on its way into it."""

    worker: Worker
    seat: Seat
    rank: int | None = None
    """In the formation; None: it has not been in one."""
    is_ready: bool = False
    """It waits for an order."""
    address: str = ""
    data_digest: str = ""
    """Of the data that it has read."""
    has_begun: bool = False
    """It trains in the current formation."""
    is_prepared: bool = False
    """It has been ready once: its data is read and its model built."""
    is_over: bool = False
    has_failed: bool = False
    """It is over, since its train function raised."""
    news: News | None = None
    pending: Any = None
    """Its answer on the way."""
    asked_at: float = field(default_factory=time.monotonic)
    waits_since: float | None = None
    """From when on all of its news said that it waits for others."""

    def info(self, rank: int) -> WorkerInfo:
        """For the observer."""
        facts = self.worker.metadata
        return WorkerInfo(rank=rank, node_id=facts.node_id, pid=facts.pid, node_ip=facts.node_ip)

    @property
    def step(self) -> int:
        """The newest that it has told of."""
        return 0 if self.news is None else self.news.step

    @property
    def step_s(self) -> float:
        """How long its steps take, as it has told, seconds; 0 where there is none."""
        return 0.0 if self.news is None else self.news.step_s

    def order(self, formation: Formation) -> None:
        """Have it go into a formation."""
        self.rank = self.seat.rank = formation.rank
        self.is_ready, self.has_begun = False, False
        self.worker.actor.form.remote(formation)

    def end(self) -> None:
        """End its process for good, though it may hear nothing."""
        end_process(self.worker.actor, self.worker.metadata.node_id, self.worker.metadata.pid)

    def ask(self) -> None:
        """Ask for news, if an answer is not on its way already."""
        if self.pending is None:
            self.pending, self.asked_at = self.worker.actor.news.remote(), time.monotonic()

    def take(self, news: News) -> str | None:
        """Take what it tells; why its formation cannot go on, if it says so."""
        self.news, lost = news, None
        if not news.is_waiting:
            self.waits_since = None
        elif self.waits_since is None:
            self.waits_since = time.monotonic()
        for event in news.events:
            if event.kind == "waiting":
                self.is_ready, self.address, self.has_begun = True, event.text, False
                self.is_prepared, self.data_digest = True, event.digest
            elif event.kind == "training":
                self.has_begun = True
            elif event.kind == "over":
                self.is_over, self.has_failed = True, bool(event.text)
            elif event.kind == "lost":
                lost = event.text
        return lost

    def is_silent(self, heartbeat_s: float) -> bool:
        """Whether it has not answered for so long that it never will."""
        limit_s = heartbeat_s if self.is_prepared else max(heartbeat_s, PREPARE_SILENCE_S)
        return self.silent_s() > limit_s

    def forgive(self, seconds: float) -> None:
        """So long its answers lay unheard: nobody is blamed for that time."""
        now = time.monotonic()
        self.asked_at = min(now, self.asked_at + seconds)
        if self.waits_since is not None:
            self.waits_since = min(now, self.waits_since + seconds)

    def silent_s(self) -> float:
        """For how long it has not answered, seconds."""
        return time.monotonic() - self.asked_at if self.pending is not None else 0.0

    @property
    def is_waiting(self) -> bool:
        """It waits, for others or for an order."""
        return self.is_ready or (self.news is not None and self.news.is_waiting)

    @property
    def waited_s(self) -> float:
        """For how long it has waited for others, seconds; 0 where it does not."""
        if self.news is None or self.waits_since is None:
            return 0.0
        return min(time.monotonic() - self.waits_since, self.news.idle_s)

    def hung_s(self, heartbeat_s: float, others: Collection[Member]) -> float | None:
        """For how long it has hung while one of the others waits for it; None: it does not.

        What it does is measured by how long that took before, in this formation: a step by steps, an
        evaluation by evaluations. Where nobody waits, all are slow alike, as where the storage stands still.
        A rank that is alone hangs in its steps only: nothing tells a hanging read from one that takes long.
        """
        news = self.news
        if news is None or self.is_waiting or news.doing not in JUDGED:
            return None
        usual_s = SLOW_FACTOR * news.usual_s
        is_hung = news.idle_s > max(heartbeat_s, usual_s)
        if not others:
            return news.idle_s if is_hung and usual_s > 0 and news.doing in (STEP, UPDATE) else None
        if usual_s == 0 or news.doing == COMMIT:
            limit_s = STORAGE_S if news.doing == COMMIT else AWAITED_S
            is_hung &= max(other.waited_s for other in others) > max(heartbeat_s, limit_s)
        return news.idle_s if is_hung and any(other.is_waiting for other in others) else None

    @property
    def last_deed(self) -> str:
        """What it did last, to go on a sentence with."""
        if self.news is None:
            return ""
        where = f", in {self.news.where}" if self.news.where else ""
        return f"; the last thing it did: step {self.news.step}, {self.news.doing}{where}"
