"""A run's workers as processes of this machine, and a driver that orders them about; without Ray."""

from __future__ import annotations

import multiprocessing as mp
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from eagleray.specs import TrainSpec
from eagleray.training.station import STATION, Event, Formation, News
from eagleray.training.telemetry import Record

_CONTEXT = mp.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["eagleray.training.worker_imports", "eagleray.training.life"])
LIMIT_S = 120.0
OUT_S = 8.0
"""The heartbeat's time."""


@dataclass(eq=False)
class Worker:
    """One process; `events` are what it has told since its last order."""

    process: Any
    pipe: Any
    events: list[Event] = field(default_factory=list)
    news: News | None = None
    outcome: Any = None
    error: str | None = None
    records: list[Record] = field(default_factory=list)
    """What it has told, all of it."""

    def order(self, name: str, *arguments: Any) -> Any:
        """Call the worker's station, or break its groups; None where the process has ended."""
        try:
            self.pipe.send((name, arguments))
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def look(self) -> News | None:
        """Its news; None where the process has ended."""
        found = self.order("news")
        if found is None:
            return None
        self.news, self.outcome, self.error, records = found
        self.records += records
        assert self.news is not None
        self.events += self.news.events
        return self.news

    @property
    def is_ready(self) -> bool:
        """It waits for an order."""
        return bool(self.events) and self.events[-1].kind == "waiting"


class Crew:
    """The workers of one run. The test is the driver."""

    def __init__(self, spec: TrainSpec, run_url: str, first_attempt: int):
        self._spec, self._run_url = spec, run_url
        self.workers: list[Worker] = []
        """Of the formation, by rank."""
        self._number = first_attempt - 1

    def start(self, count: int) -> list[Worker]:
        """New processes, ready for an order."""
        found = []
        for _ in range(count):
            ours, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_work, args=(theirs, self._spec, self._run_url), daemon=True)
            process.start()
            theirs.close()
            found.append(Worker(process, ours))
        for worker in found:
            self.await_(worker, lambda worker=worker: worker.is_ready)
        return found

    def form(self, workers: list[Worker], *, num_lost: int = 0) -> None:
        """Order these into a formation."""
        self._number += 1
        num_before = len(self.workers)
        address = workers[0].events[-1].text
        for rank, worker in enumerate(workers):
            worker.events.clear()
            worker.order("form", Formation(self._number, rank, len(workers), address, num_before, num_lost))
        self.workers = workers

    def resize(self, count: int) -> None:
        """The planned path: a notice, everybody yields, joiners come or the last ones leave."""
        joiners = self.start(max(0, count - len(self.workers)))
        self.workers[0].order("notice", 1)
        for worker in self.workers:
            self.await_(worker, lambda worker=worker: worker.is_ready)
            assert "yielded" in [event.kind for event in worker.events], worker.events
        for leaver in self.workers[count:]:
            end(leaver)
        self.form([*self.workers[:count], *joiners])

    def lose(self, *ranks: int, replace: bool = False) -> None:
        """Kill some ranks' processes, now; the others form anew, with new workers in their place if asked."""
        spares = self.start(len(ranks)) if replace else []
        lost = [self.workers[rank] for rank in ranks]
        for worker in lost:
            end(worker)
        left = [worker for worker in self.workers if worker not in lost]
        stuck = [worker for worker in left if not self._comes_out(worker)]
        for worker in stuck:
            end(worker)
        out = [worker for worker in left if worker not in stuck]
        self.form([*out, *spares], num_lost=len(ranks) + len(stuck))

    def lose_all(self) -> None:
        """Kill every process at once, as a loss of power would."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()

    def _comes_out(self, worker: Worker) -> bool:
        """False: gloo keeps it waiting for a dead one to connect, and nothing wakes it: its driver ends it.

        The driver does so after its heartbeat's time (`giving_up.hopeless`); gloo gives up after the group's.
        """
        since = time.monotonic()

        def is_stuck() -> bool:
            news = worker.news
            return (
                news is not None and "_new_process_group" in news.where and time.monotonic() - since > OUT_S
            )

        self.await_(worker, lambda: self._is_out(worker) or is_stuck())
        return worker.is_ready

    def _is_out(self, worker: Worker) -> bool:
        """Whether it has left its formation; if not, break that: it may still wait for the others to come."""
        if not worker.is_ready:
            worker.order("break_groups")
        return worker.is_ready

    def await_step(self, step: int) -> None:
        """Until rank 0 is at the step."""
        worker = self.workers[0]
        self.await_(worker, lambda: worker.news is not None and worker.news.step >= step)

    def await_(self, worker: Worker, is_there: Callable[[], bool]) -> None:
        """Ask the worker until something has come about."""
        deadline = time.monotonic() + LIMIT_S
        while not is_there():
            assert worker.look() is not None, "the process has ended"
            assert worker.error is None, worker.error
            assert time.monotonic() < deadline, f"not within {LIMIT_S} s; {worker.news}"

    def failure(self, worker: Worker) -> str:
        """The traceback with which a worker's train function ends."""
        deadline = time.monotonic() + LIMIT_S
        while worker.error is None:
            assert worker.look() is not None, "the process has ended"
            assert time.monotonic() < deadline, f"no failure within {LIMIT_S} s; {worker.news}"
        return worker.error

    def outcome(self) -> dict[str, Any]:
        """Rank 0's, when all have trained to the end."""
        for worker in self.workers:
            self.await_(worker, lambda worker=worker: worker.outcome is not None)
        return self.workers[0].outcome


@contextmanager
def crew(spec: TrainSpec, run_url: str, first_attempt: int = 1) -> Iterator[Crew]:
    """A crew without workers; all of its processes are ended at the end."""
    before = set(mp.active_children())
    try:
        yield Crew(spec, run_url, first_attempt)
    finally:
        for process in set(mp.active_children()) - before:
            process.kill()
            process.join()


def end(worker: Worker) -> None:
    """Kill the process."""
    worker.process.kill()
    worker.process.join()


def _work(pipe: Any, spec: TrainSpec, run_url: str) -> None:
    """A worker's process: its train function in a thread, the driver's orders in this one."""
    from eagleray import groups
    from eagleray.training.telemetry import Buffer
    from eagleray.training.worker import train_in_formations

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    sink = Buffer()
    done: dict[str, Any] = {"outcome": None, "error": None}

    def train() -> None:
        try:
            done["outcome"] = train_in_formations(spec, run_url, STATION, sink, _address)
        except BaseException:
            done["error"] = traceback.format_exc()

    threading.Thread(target=train, daemon=True).start()
    while True:
        try:
            name, arguments = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        if name == "break_groups":
            pipe.send(groups.break_groups())
        elif name == "news":
            news = STATION.news(0.02)
            pipe.send((news, done["outcome"], done["error"], sink.drain()))
        else:
            pipe.send((getattr(STATION, name)(*arguments),))


def _address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
