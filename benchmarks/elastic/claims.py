"""The ledger at work: a run holds all nodes, a request brings a replica up on one, and the run grows back.

One repetition is one such cycle. The run is a job's driver as a user would start it; its times and the
service's are read from the ledger's event log. `what Ray says` is asked of Ray itself, 50 times a second.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import workloads
from asked import Asked
from kit.results import NotAvailable, RowFailed
from messages import Teller
from trial import connect

NODES = 4
BEFORE_S = 1.5
"""Of training at full size, before a request comes."""
LIMIT_S = 120.0


def claim(tell: Teller, reps: int) -> None:
    """See the module."""
    try:
        from eagleray.cluster import event_log
        from eagleray.cluster.ledger_client import LedgerClient
    except ImportError as error:
        raise NotAvailable(f"the ledger is not in this checkout: {error}") from None
    connect()
    if LedgerClient.find() is None:
        raise NotAvailable("no ledger runs on the cluster")
    from place import CLUSTER

    from eagleray.cluster import settings, state

    url = event_log.url_of(settings.storage_url(), CLUSTER)

    def events_since(at: float) -> list[Any]:
        return list(event_log.read(url, since_s=at))

    tell.note("starting the service and the run")
    asked = Asked(state.find(CLUSTER), min_replicas=0, idle_s=2, cpus_per_replica=1)
    with asked, job(NODES) as run, Free() as free:
        for number in range(reps):
            run.await_size(NODES)
            time.sleep(BEFORE_S)
            values = cycle(asked, run, free, events_since)
            tell.repetition(**values)
            tell.note(
                f"{number + 1}/{reps}: free after {values['free_s']:.2f} s, "
                f"answered after {values['answer_s']:.1f} s"
            )
        report = run.stop()
    step_s = report["step_seconds"] / report["steps"]
    commit_s = report["commit_seconds"] / max(1, report["num_commits"])
    tell.facts(step_s=step_s, commit_s=commit_s)
    tell.facts(**{"two steps + a commit + 0.3 s": 2 * step_s + commit_s + 0.3})


def cycle(
    asked: Asked, run: Job, free: Free, events_since: Callable[[float], Sequence[Any]]
) -> dict[str, Any]:
    """One request to a service that has no replica, while the run has everything."""
    at = time.time()
    asked.ask_once(LIMIT_S)
    answered = time.time()
    deadline = time.monotonic() + 10  # the log is written once a second
    while True:
        events = events_since(at - 0.5)
        wanted = next((one for one in events if one.claim.startswith("serve:") and one.time_s >= at), None)
        notice = next((one for one in events if one.claim == run.id and one.kind == "notice"), None)
        returned = next((one for one in events if one.claim == run.id and one.kind == "return"), None)
        if wanted is not None and notice is not None and returned is not None:
            break
        if time.monotonic() > deadline:
            kinds = [(one.kind, one.claim) for one in events]
            raise RowFailed(f"the log has no claim, notice and return since the request: {kinds}")
        time.sleep(0.2)
    return {
        "free_s": free.since(notice.time_s) - notice.time_s,
        "returned_s": returned.time_s - notice.time_s,
        "answer_s": answered - wanted.time_s,
        "request_s": answered - at,
        "noticed_s": notice.time_s - wanted.time_s,
    }


class Free:
    """When Ray said that a GPU is free: a replica here takes none, so only the run's are told of."""

    def __enter__(self) -> Free:
        self._seen: list[tuple[float, float]] = []
        self._is_over = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()

    def since(self, at: float) -> float:
        """The first time from then on at which one more was free than then."""
        before = [count for time_s, count in self._seen if time_s <= at][-1]
        for time_s, count in self._seen:
            if time_s > at and count > before:
                return time_s
        raise RowFailed("Ray never said that a GPU is free")

    def _look(self) -> None:
        import ray

        while not self._is_over.wait(0.02):
            self._seen.append((time.time(), ray.available_resources().get("GPU", 0.0)))


class Job:
    """A run by its own driver, in a process beside this one."""

    def __init__(self, process: subprocess.Popen[str], run_id: str, folder: Path):
        self.id, self._process, self._folder = run_id, process, folder

    def await_size(self, size: int) -> None:
        """Until its newest formation has so many ranks."""
        deadline = time.monotonic() + LIMIT_S
        while self._size() != size:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RowFailed(f"the run has {self._size()} ranks, not {size}, or has ended")
            time.sleep(0.1)

    def _size(self) -> int:
        found = sorted(self._folder.glob("attempts/[0-9]*.json"))
        return json.loads(found[-1].read_text())["world_size"] if found else 0

    def stop(self) -> dict[str, Any]:
        """End it as `ray job stop` does; its report."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        return json.loads((self._folder / "report.json").read_text())


@contextmanager
def job(workers: int) -> Iterator[Job]:
    """The demo's GPT on all nodes, down to one; its lines go to this row's log."""
    settings = [
        f"training.steps={workloads.ENDLESS}",
        f"training.global_batch_size={workloads.BATCH[workers]}",
        f"training.evaluate_every_steps={workloads.ENDLESS}",
        f"checkpoint.every_steps={workloads.EVERY_STEPS}",
        f"scaling.num_workers={workers}",
        "scaling.min_workers=1",
    ]
    from place import ROOT

    process = subprocess.Popen(
        [sys.executable, "-m", "eagleray.workflows.train", "examples/train/gpt.toml"]
        + [word for one in settings for word in ("--set", one)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        run_id = next((line.split()[1] for line in process.stdout if line.startswith("run ")), None)
        if run_id is None:
            raise RowFailed("the run's driver ended before it had begun; see the row's log")
        threading.Thread(target=_copy, args=(process.stdout,), daemon=True).start()
        yield Job(process, run_id, Path(os.environ["EAGLERAY_STORAGE"]) / "runs" / run_id)
    finally:
        process.kill()
        process.wait(30)


def _copy(lines: Any) -> None:
    for line in lines:
        print(line, end="", flush=True)
