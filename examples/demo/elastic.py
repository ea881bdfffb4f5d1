"""The elastic demo: one cluster whose nodes serve when there is traffic and train when there is not.

    make demo-elastic           all of it, then nothing is left running
    make demo-elastic KEEP=1    leaves the cluster up

A GPT is served, and another trains on every node that is free. Traffic comes: the run gives nodes back, and
replicas come up on them. It goes: the run takes the nodes again, and finishes. Then every sample is proven to
have taken effect exactly once, and a picture from the ledger's event log shows who held what.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("EAGLERAY_DEMO_CLUSTER", "elastic")

import numpy as np  # after the name is set: `common` reads it when it is imported
from common import (
    CLUSTER,
    ROOT,
    Tally,
    cluster_environment,
    eagleray,
    found_in,
    of_cluster,
    read_json,
    require,
    say,
    step,
    submit,
)
from playing import perform
from serving import PROMPT, connect, deploy, publish

from eagleray.client import AsyncClient, Client
from eagleray.errors import EaglerayError
from eagleray.workflows import capacity_picture

FOLDER = "examples/elastic"
NUM_NODES, NUM_REPLICAS, LAST_STEP = 4, 2, 7
CALLERS, NUM_TOKENS = 8, 48
TRAFFIC_S = 8.0
"""How long it goes on once all replicas are there."""
LOOK_S = 0.25
LIMIT_S = 90.0
"""For whatever is waited for; much more than it takes."""
GOAL_S = 240.0


class Watch:
    """Who trains, by the run's own log, and who serves, by the ledger; while its `with` block lasts."""

    def __init__(self, client: Client):
        self.workers = self.replicas = 0
        """That train and that serve now."""
        self._client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                claims = self._client.admin.claims().claims
            except EaglerayError:
                continue  # the next look will do
            self.replicas = sum(
                sum(claim.used.values()) for claim in claims if claim.holder.startswith("service ")
            )

    def line(self, line: str) -> None:
        """Take a line of the run's log."""
        if match := re.match(r"attempt \d+: (?:\d+ -> )?(\d+) workers?", line):
            self.workers = int(match[1])

    def until(self, condition: Callable[[], bool], what: str, run: Future[Any] | None = None) -> float:
        """Wait; returns the seconds. Raises: DemoError after LIMIT_S, or where the run ended before."""
        began, seen = time.monotonic(), None
        while not condition():
            seconds = time.monotonic() - began
            require(seconds < LIMIT_S, f"after {seconds:.0f} s not yet: {what} ({self})")
            require(run is None or not run.done(), f"the run ended before this came true: {what} ({self})")
            if seen != (seen := str(self)):
                say(f"{seconds:5.1f} s  {self}")
            time.sleep(LOOK_S)
        seconds = time.monotonic() - began
        say(f"{seconds:5.1f} s  {self}")
        return seconds

    def __str__(self) -> str:
        return f"{self.workers} workers train, {self.replicas} replicas serve"


def play(tally: Tally) -> None:
    """The steps, in order."""
    step(1, "A local cluster of up to four nodes for training and serving alike, and its ledger")
    began, began_at = time.monotonic(), time.time()
    eagleray(*of_cluster("up", f"{FOLDER}/local.toml"))
    environment = cluster_environment()
    step(2, "A small GPT, trained for a moment, behind the ingress: no replica while nobody asks")
    publish(short_run(environment, tally), "gpt", environment, tally)
    with connect(began) as client:
        deploy(f"{FOLDER}/service.toml", "gpt", tally)
        with Watch(client) as watch, ThreadPoolExecutor(1, "run") as thread:
            step(3, "Another one trains on every node that is free")
            spec = f"{FOLDER}/train.toml"
            run = thread.submit(submit, "jobs/train.py", (spec,), environment, tally, watch.line)
            watch.until(lambda: watch.workers == NUM_NODES and not watch.replicas, "it has all nodes", run)
            traffic(client, watch, run, tally)
            step(5, "The traffic is over: the run takes the nodes again, and goes on to its end")
            seconds = watch.until(lambda: watch.workers == NUM_NODES, "it has all nodes again", run)
            tally.add("traffic over -> the run has all nodes again", f"{seconds:.1f} s (replicas idle 6 s)")
            log = run.result()
    check(Path(found_in(log, r"files in (\S+)")), began_at, tally)


def short_run(environment: dict[str, str], tally: Tally) -> str:
    """A model to serve; returns the id of its run."""
    changes = ("name=gpt", "training.steps=60", "training.evaluate_every_steps=60", "scaling.num_workers=1")
    arguments = [word for change in changes for word in ("--set", change)]
    log = submit("jobs/train.py", (f"{FOLDER}/train.toml", *arguments), environment, tally)
    return Path(found_in(log, r"files in (\S+)")).name


def traffic(client: Client, watch: Watch, run: Future[Any], tally: Tally) -> None:
    """Callers, until as many replicas serve as there may be, and a little longer."""
    step(4, f"Traffic: {CALLERS} callers want {NUM_TOKENS} tokens each, and again as soon as they have them")
    failures, latencies = asyncio.run(_call(client.url, watch, run, tally))
    require(not failures, f"{len(failures)} requests failed, the first: {failures[:1]}")
    p50, p99 = (float(np.percentile(latencies, q)) * 1e3 for q in (50, 99))
    say(f"{len(latencies)} texts, none failed; p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    tally.add("traffic: texts", f"{len(latencies)}, 0 failed, p50 {p50:.0f} ms")


async def _call(url: str, watch: Watch, run: Future[Any], tally: Tally) -> tuple[list[str], list[float]]:
    """Callers in a closed loop; what failed, and how long each text took in seconds."""
    ended, failures, latencies = asyncio.Event(), [], []

    async def call(client: AsyncClient, number: int) -> None:
        while not ended.is_set():
            began = time.monotonic()
            try:
                await client.generate("gpt", PROMPT, max_tokens=NUM_TOKENS, seed=number)
                latencies.append(time.monotonic() - began)
            except EaglerayError as error:
                failures.append(str(error))

    async def end() -> None:
        try:
            seconds = await asyncio.to_thread(
                watch.until, lambda: watch.replicas == NUM_REPLICAS, f"{NUM_REPLICAS} replicas serve", run
            )
            tally.add(f"traffic -> {NUM_REPLICAS} replicas on nodes of the run", f"{seconds:.1f} s")
            await asyncio.to_thread(eagleray, *of_cluster("status"), shown="status")
            await asyncio.sleep(TRAFFIC_S)
        finally:
            ended.set()

    async with AsyncClient(url) as client:
        await asyncio.gather(end(), *(call(client, number) for number in range(CALLERS)))
    return failures, latencies


def check(folder: Path, began_at: float, tally: Tally) -> None:
    """The run lost nothing, and it is proven."""
    step(6, "Every sample of the run took effect exactly once, and who held what is on record")
    report = read_json(folder / "report.json")
    require(report["status"] == "FINISHED", f"the run is {report['status']}")
    require(not report["recoveries"], f"the run lost workers: {report['recoveries']}")
    eagleray("verify-run", folder.name, shown=f"verify-run {folder.name}")
    picture = ROOT / ".demo" / "elastic.png"
    picture.parent.mkdir(exist_ok=True)
    capacity_picture.draw(picture, cluster=CLUSTER, since_s=began_at, resource="GPU")
    say(f"picture of who held what: {picture}")
    tally.add("run: steps, samples lost or repeated", f"{report['steps']}, 0")
    tally.add("run: goodput", f"{report['goodput']['ratio']:.0%}")


if __name__ == "__main__":
    sys.exit(perform(play, LAST_STEP, GOAL_S))
