"""The long rows, with --full: how soon and how calmly services scale, and what stays after much traffic."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bodies
import running
import workloads
from blocks import decision, growth, more, most, reversals
from kit.results import NotAvailable, RowFailed, Teller
from load import Requests
from rig import Rig

OBJECTIVE_MS = 100
MOST_REPLICAS = 3
CALM_S, AFTER_S = 30.0, 30.0
SETTLE_S = 5.0
"""In which more replicas are wanted, and begin to come up, because their capacity was looked for."""
LIGHT = 0.15
"""Of what one replica can do; ten times that is more than one can."""
SAMPLE_S = 5.0
SETTLED = 12
"""Samples of a soak before its comparison begins."""
SMALL_BYTES = 16 << 20
"""A process that has less is not watched for 2 %: one arena more is as much."""
RAYS = ("raylet", "gcs_server")
"""Programs of Ray's that keep more the longer a cluster is up, also where nothing is asked of it."""
CONNECTIONS = 64


@dataclass
class Decisions:
    """What Serve's controller logs of an application while the block lasts, with the time it was seen."""

    rig: Rig
    app: str
    found: list[tuple[float, int, str]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Decisions:
        self._at = {path: path.stat().st_size for path in self.rig.ours.controller_logs()}
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.05):
            for path in self.rig.ours.controller_logs():
                with path.open(errors="replace") as file:
                    file.seek(self._at.get(path, 0))
                    text = file.read()
                whole, _, _ = text.rpartition("\n")
                self._at[path] = self._at.get(path, 0) + len(whole.encode()) + bool(whole)
                for line in whole.splitlines():
                    told = decision(line, self.app)
                    if told is not None:
                        self.found.append((time.monotonic(), told[0], told[2]))


def step(tell: Teller, reps: int, rig: Rig, *, model: str) -> None:
    """A load that becomes ten times as much: seconds until more replicas are wanted."""
    request, capacity, app = _scaled(rig, model, "bench-step", idle_s=5)
    try:
        for number in range(reps):
            _until(lambda: _replicas(rig, "bench-step") == 1, 180, "one replica again")
            light = Requests(request, CONNECTIONS, LIGHT * capacity, seed=number)
            heavy = Requests(request, 4 * CONNECTIONS, 10 * LIGHT * capacity, seed=number)
            with Decisions(rig, app) as log:
                rig.block(rig.ours.port, light, seconds=CALM_S)
                began = time.monotonic()
                rig.block(rig.ours.port, heavy, seconds=AFTER_S)
            up = [(at - began, wanted, why) for at, wanted, why in log.found if at > began and wanted > 1]
            if not up:
                raise RowFailed(f"no more replicas were wanted in {AFTER_S:.0f} s; decisions: {log.found}")
            tell.repetition(decision_s=up[0][0], wanted=up[0][1], why=up[0][2])
            tell.note(f"{number + 1}/{reps}: {up[0][1]} replicas wanted after {up[0][0]:.1f} s: {up[0][2]}")
    finally:
        rig.ours.undeploy("bench-step")


def steady(tell: Teller, reps: int, rig: Rig, *, model: str, seconds: float) -> None:
    """A constant load: how often what is wanted turns."""
    request, capacity, app = _scaled(rig, model, "bench-steady", idle_s=30)
    try:
        for number in range(reps):
            load = Requests(request, CONNECTIONS, 0.7 * capacity, seed=number)
            rig.block(rig.ours.port, load, seconds=30.0)  # the first decisions are those of a change
            before = _replicas(rig, "bench-steady")
            with Decisions(rig, app) as log:
                rig.block(rig.ours.port, load, seconds=seconds)
            wanted = [before, *(one for _, one, _ in log.found)]
            tell.repetition(reversals=reversals(wanted), wanted=wanted, why=[why for *_, why in log.found])
            tell.note(f"{number + 1}/{reps}: wanted {wanted}")
    finally:
        rig.ours.undeploy("bench-steady")


def _scaled(rig: Rig, model: str, name: str, *, idle_s: float) -> tuple[Path, float, str]:
    """A service by an objective: its request, how many a replica answers per second, and its app."""
    rig.ours.up()
    rig.ours.require_binary()
    version = rig.ours.publish(name, model)
    rig.ours.deploy(
        name,
        version,
        max_batch_size=8,
        max_replicas=MOST_REPLICAS,
        objective_p95_ms=OBJECTIVE_MS,
        idle_s=idle_s,
    )
    raw = bodies.infer_binary(rig.ours.port, name, workloads.samples(model), rig.ours.headers)
    request = bodies.written(rig.folder, name, raw)
    capacity = rig.block(rig.ours.port, Requests(request, 16), seconds=3.0).only.ok_per_s
    time.sleep(SETTLE_S)
    return request, capacity, f"m--{name}--v{version}"


def _replicas(rig: Rig, name: str) -> int:
    return sum(one.get("replicas", 0) for one in rig.ours.services(name))


def _until(condition: Callable[[], bool], limit_s: float, what: str) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise RowFailed(f"no {what} within {limit_s:.0f} s")
        time.sleep(0.2)


@dataclass
class Watch:
    """Memory, descriptors and shared memory of the cluster's processes, sample by sample."""

    rig: Rig
    rss: dict[int, list[float]] = field(default_factory=dict)
    open_files: dict[int, list[float]] = field(default_factory=dict)
    memory_files: list[float] = field(default_factory=list)
    shared: list[float] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(SAMPLE_S):
            memory_files = set[str]()
            for pid in self.rig.ours.processes():
                rss, targets = running.rss_bytes(pid), running.descriptors(pid)
                if rss is not None and targets is not None:
                    self.rss.setdefault(pid, []).append(rss)
                    self.open_files.setdefault(pid, []).append(len(targets))
                    memory_files |= {f"{pid} {one}" for one in targets if one.startswith("/memfd:")}
            self.memory_files.append(len(memory_files))
            self.shared.append(sum(running.shared_memory().values()))

    def found(self) -> dict[str, Any]:
        """What grew, and what stayed. Raises: RowFailed for too few samples."""
        titles = {pid: _title(pid) for pid in self.rss}
        large = {pid: found for pid, found in self.rss.items() if found[-1] >= SMALL_BYTES}
        ours = {pid: found for pid, found in large.items() if titles[pid] not in RAYS}
        grew = most(large, titles, functools.partial(growth, settled=SETTLED))
        ours_grew = most(ours, titles, functools.partial(growth, settled=SETTLED))
        leaked = most(self.open_files, titles, functools.partial(more, settled=SETTLED))
        if grew is None or ours_grew is None or leaked is None:
            raise RowFailed("too few samples to tell growth from")
        return {
            "growth": grew[0],
            "grew_most": grew[1],
            "ours_growth": ours_grew[0],
            "ours_grew_most": ours_grew[1],
            "mib": {
                f"{pid} {titles[pid]}": [round(one / 2**20, 1) for one in (found[SETTLED], found[-1])]
                for pid, found in large.items()
                if len(found) > SETTLED
            },
            "descriptors": leaked[0],
            "leaked_most": leaked[1] if leaked[0] else "",
            "memory_files": more(self.memory_files, settled=SETTLED),
            "shared_bytes": more(self.shared, settled=SETTLED),
        }


def _title(pid: int) -> str:
    """A process's own title, or the name of its program."""
    return Path(running.command(pid).partition(" ")[0]).name[:60]


def soak(tell: Teller, reps: int, rig: Rig, *, model: str, samples: int, seconds: float) -> None:
    """Bodies of 10 MB, one after the other on a few connections."""
    rig.ours.serve(model)
    rig.ours.require_binary()
    raw = bodies.infer_binary(rig.ours.port, model, workloads.samples(model, samples), rig.ours.headers)
    answer = bodies.ask(rig.ours.port, raw)
    if answer.status != 200:
        raise NotAvailable(f"a body of {len(raw):,} bytes: {answer.status} {answer.body[:200]!r}")
    request = bodies.written(rig.folder, "soak", raw)
    tell.facts(body_bytes=len(raw), seconds=seconds)
    for number in range(reps):
        with Watch(rig) as watch:
            seen = rig.block(rig.ours.port, Requests(request, 4), seconds=seconds).only
        found = watch.found()
        tell.repetition(**found, ours_per_s=seen.ok_per_s, bad=seen.bad)
        tell.note(
            f"{number + 1}/{reps}: {found['growth']:+.1%} ({found['grew_most']}), {seen.ok_per_s:.1f}/s"
        )
