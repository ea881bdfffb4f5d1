"""Load on the served digits: replicas and nodes follow it up and down, and no request fails."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from common import CLUSTER, ROOT, Tally, require, say
from serving import Digits

from eagleray.client import AsyncClient, Client
from eagleray.errors import EaglerayError

CALLERS = 16
MOST_REPLICAS = 3
LEAST_LOAD_S, MOST_LOAD_S = 12.0, 75.0
"""Load lasts until all replicas are there, and a little longer."""
CALM_LIMIT_S = 90.0
SAMPLE_S = 0.5


@dataclass
class Trace:
    """What was seen over time; seconds since the load began."""

    at_s: list[float] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    done_s: list[float] = field(default_factory=list)
    """When each answer came."""
    latency_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    load_ended_s: float = 0.0

    @property
    def most_replicas(self) -> int:
        """Ready at one time."""
        return max(self.replicas, default=0)


class Sampler:
    """Notes replicas and nodes twice a second, in a thread."""

    def __init__(self, admin: Client, trace: Trace, began: float):
        self._admin, self._trace, self._began = admin, trace, began
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        from eagleray.cluster import nodes, state

        folder = state.find(CLUSTER).nodes_dir
        while not self._stop.wait(SAMPLE_S):
            try:
                replicas = sum(one.replicas for one in self._admin.admin.services("digits"))
            except EaglerayError:
                continue  # the next sample will do
            self._trace.at_s.append(time.monotonic() - self._began)
            self._trace.replicas.append(replicas)
            self._trace.nodes.append(sum(node.is_alive for node in nodes.read_all(folder)))


def under_load(admin: Client, digits: Digits, tally: Tally) -> None:
    """Sixteen callers until the replicas are three, then none until there is one again."""
    trace, began = Trace(), time.monotonic()
    with Sampler(admin, trace, began):
        say(f"{CALLERS} callers, each asks again as soon as it has its answer")
        asyncio.run(_load(admin.url, digits, trace, began))
        trace.load_ended_s = time.monotonic() - began
        rate = len(trace.done_s) / trace.load_ended_s
        say(
            f"load stops after {trace.load_ended_s:.0f} s: {len(trace.done_s):,} requests "
            f"({rate:,.0f}/s), {len(trace.failures)} failed"
        )
        _calm(trace, began)
    require(not trace.failures, f"{len(trace.failures)} requests failed, the first: {trace.failures[:1]}")
    require(trace.most_replicas == MOST_REPLICAS, f"there were {trace.most_replicas} replicas at most")
    require(max(trace.nodes) > trace.nodes[0], "the autoscaler added no node for them")
    picture = ROOT / ".demo" / "load.png"
    picture.parent.mkdir(exist_ok=True)
    draw(trace, picture)
    say(f"picture: {picture}")
    p50, p99 = (float(np.percentile(trace.latency_s, q)) * 1e3 for q in (50, 99))
    tally.add("load: requests", f"{len(trace.done_s):,}, {rate:,.0f}/s, 0 failed")
    tally.add(f"load: latency with {CALLERS} callers", f"p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    tally.add("load: replicas", f"1 -> {trace.most_replicas} -> {trace.replicas[-1]}")
    tally.add("load: nodes", f"{trace.nodes[0]} -> {max(trace.nodes)}")


async def _load(url: str, digits: Digits, trace: Trace, began: float) -> None:
    """Callers in a closed loop; a wrong label counts as a failure."""
    ended = asyncio.Event()

    async def call(client: AsyncClient, number: int) -> None:
        index = number
        while not ended.is_set():
            index = (index + CALLERS) % len(digits.images)
            sent = time.monotonic()
            try:
                answer = await client.predict("digits", digits.images[index][None])
                if answer.label != digits.labels[index]:
                    trace.failures.append(f"digit {index}: {answer.label}, not {digits.labels[index]}")
            except EaglerayError as error:
                trace.failures.append(str(error))
            now = time.monotonic()
            trace.done_s.append(now - began)
            trace.latency_s.append(now - sent)

    async def end() -> None:
        said = 0
        while (seconds := time.monotonic() - began) < MOST_LOAD_S:
            if trace.replicas and trace.replicas[-1] != said:
                said = trace.replicas[-1]
                say(f"{seconds:4.0f} s  {said} of {MOST_REPLICAS} replicas on {trace.nodes[-1]} nodes")
            if seconds > LEAST_LOAD_S and said >= MOST_REPLICAS:
                break
            await asyncio.sleep(SAMPLE_S)
        await asyncio.sleep(5)
        ended.set()

    async with AsyncClient(url) as client:
        await asyncio.gather(end(), *(call(client, number) for number in range(CALLERS)))


def _calm(trace: Trace, began: float) -> None:
    """Wait until the replicas that nobody needs any more are gone."""
    said = trace.replicas[-1]
    while trace.replicas[-1] > 1:
        seconds = time.monotonic() - began
        require(
            seconds - trace.load_ended_s < CALM_LIMIT_S, f"{trace.replicas[-1]} replicas stayed without load"
        )
        if trace.replicas[-1] != said:
            said = trace.replicas[-1]
            say(f"{seconds:4.0f} s  {said} replicas")
        time.sleep(SAMPLE_S)
    say(f"one replica again {time.monotonic() - began - trace.load_ended_s:.0f} s after the load")


def draw(trace: Trace, path: Path) -> None:
    """Requests per second, replicas and nodes over time, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    last_s = max(trace.at_s[-1], trace.done_s[-1])
    counts, edges = np.histogram(trace.done_s, bins=np.arange(0, last_s + 1, 1.0))
    above.fill_between(edges[:-1], counts, step="post", alpha=0.5, color="tab:blue")
    above.set_ylabel("requests per second")
    above.set_title("digits under load: replicas and nodes follow")
    for values, name, colour in (
        (trace.replicas, "replicas", "tab:green"),
        (trace.nodes, "nodes", "tab:orange"),
    ):
        below.step(trace.at_s, values, where="post", label=name, color=colour, linewidth=2)
    below.set_ylabel("running")
    below.set_xlabel("seconds since the load began")
    below.set_ylim(0, max(*trace.nodes, *trace.replicas) + 0.5)
    below.yaxis.get_major_locator().set_params(integer=True)
    below.legend(loc="upper right", frameon=False)
    for axes in (above, below):
        axes.axvline(trace.load_ended_s, color="grey", linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
