"""Load on the served GPT: replicas and nodes follow it up and down, and no request fails."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field

import httpx
import numpy as np
from common import CLUSTER, ROOT, Tally, require, say
from serving import PROMPT

from eagleray.client import AsyncClient, Client
from eagleray.errors import EaglerayError

CALLERS = 16
NUM_TOKENS = 96
MOST_REPLICAS = 3
LEAST_LOAD_S, MOST_LOAD_S = 12.0, 75.0
"""Load lasts until all replicas are there, and a little longer."""
CALM_LIMIT_S = 90.0
SAMPLE_S = 0.5


@dataclass
class Trace:
    """What was seen over time; seconds on the monotonic clock."""

    at_s: list[float] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    done_s: list[float] = field(default_factory=list)
    """When each answer came."""
    latency_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    load_began_s: float = 0.0
    load_ended_s: float = 0.0

    @property
    def most_replicas(self) -> int:
        """Ready at one time."""
        return max(self.replicas, default=0)

    def since_load(self, times_s: list[float]) -> list[float]:
        """Seconds since the load began."""
        return [time_s - self.load_began_s for time_s in times_s]


class Sampler:
    """Notes replicas of the GPT and nodes twice a second, in a thread, while its `with` block lasts."""

    def __init__(self, client: Client):
        self.trace = Trace()
        self._client = client
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
                replicas = sum(one.replicas for one in self._client.admin.services() if one.name == "gpt")
            except EaglerayError:
                continue  # the next sample will do
            self.trace.at_s.append(time.monotonic())
            self.trace.replicas.append(replicas)
            self.trace.nodes.append(sum(node.is_alive for node in nodes.read_all(folder)))


def under_load(url: str, trace: Trace, tally: Tally) -> None:
    """Sixteen callers until the replicas are three, then none until two of them are gone."""
    say(f"{CALLERS} callers want {NUM_TOKENS} tokens each, and again as soon as they have them")
    trace.load_began_s, num_nodes = time.monotonic(), trace.nodes[-1]
    asyncio.run(_load(url, trace))
    trace.load_ended_s = time.monotonic()
    seconds = trace.load_ended_s - trace.load_began_s
    rate = len(trace.done_s) / seconds
    say(
        f"load stops after {seconds:.0f} s: {len(trace.done_s):,} texts ({rate:.1f}/s), "
        f"{len(trace.failures)} failed"
    )
    require(not trace.failures, f"{len(trace.failures)} requests failed, the first: {trace.failures[:1]}")
    require(trace.most_replicas == MOST_REPLICAS, f"there were {trace.most_replicas} replicas at most")
    require(max(trace.nodes) > num_nodes, "the autoscaler added no node for them")
    _calm(trace)
    p50, p99 = (float(np.percentile(trace.latency_s, q)) * 1e3 for q in (50, 99))
    tally.add("load: texts", f"{len(trace.done_s):,}, {rate * NUM_TOKENS:,.0f} tokens/s, 0 failed")
    tally.add(f"load: latency with {CALLERS} callers", f"p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    tally.add("load: on the fast lane", _laned(url))
    tally.add("load: replicas", f"1 -> {trace.most_replicas} -> {trace.replicas[-1]}")
    tally.add("load: nodes", f"{num_nodes} -> {max(trace.nodes)}")


def _laned(url: str) -> str:
    """How many of the GPT's requests took the fast lane, by the gateway's own counters."""
    page = httpx.get(f"{url}/metrics", trust_env=False).text
    laned = _sum(page, "eagleray_ingress_lane_total")
    everyone = _sum(page, "eagleray_ingress_way_total")
    require(laned > everyone / 2, f"only {laned} of {everyone} requests took the fast lane")
    return f"{laned:,} of {everyone:,} requests"


def _sum(page: str, name: str) -> int:
    """Of a counter's samples that are the GPT's."""
    samples = [line for line in page.splitlines() if line.startswith(f"{name}{{") and 'model="gpt"' in line]
    return sum(int(line.split()[-1]) for line in samples)


async def _load(url: str, trace: Trace) -> None:
    """Callers in a closed loop; a text that differs from an earlier one of the same seed is a failure."""
    ended = asyncio.Event()
    texts: dict[int, str] = {}

    async def call(client: AsyncClient, number: int) -> None:
        while not ended.is_set():
            sent = time.monotonic()
            try:
                text = await _text(client, number)
                if texts.setdefault(number, text) != text:
                    trace.failures.append(f"seed {number} gave two texts")
            except EaglerayError as error:
                trace.failures.append(str(error))
            now = time.monotonic()
            trace.done_s.append(now)
            trace.latency_s.append(now - sent)

    async def end() -> None:
        said = 0
        while (seconds := time.monotonic() - trace.load_began_s) < MOST_LOAD_S:
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


async def _text(client: AsyncClient, seed: int) -> str:
    """One text, streamed to its end: streams take the fast lane."""
    stream = await client.generate("gpt", PROMPT, max_tokens=NUM_TOKENS, seed=seed, stream=True)
    async with stream:
        return "".join([piece async for piece in stream])


def _calm(trace: Trace) -> None:
    """Wait until the replicas that nobody needs any more are gone."""
    said = 0
    while (replicas := trace.replicas[-1]) > 1:
        seconds = time.monotonic() - trace.load_ended_s
        require(seconds < CALM_LIMIT_S, f"{replicas} replicas stay after {seconds:.0f} s without load")
        if replicas != said:
            said = replicas
            say(f"{seconds:4.0f} s  {replicas} replicas, no load")
        time.sleep(SAMPLE_S)
    say(f"{trace.replicas[-1]} replicas {time.monotonic() - trace.load_ended_s:.0f} s after the load")


def draw(trace: Trace) -> None:
    """Requests per second, replicas and nodes over time, as a PNG."""
    from matplotlib.figure import Figure

    at_s, done_s = trace.since_load(trace.at_s), trace.since_load(trace.done_s)
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    counts, edges = np.histogram(done_s, bins=np.arange(0, max(done_s) + 1, 1.0))
    above.fill_between(edges, [*counts, 0], step="post", alpha=0.5, color="tab:blue")
    above.set_ylabel("texts per second")
    above.set_title("the GPT under load: replicas and nodes come, and go")
    below.step(at_s, trace.replicas, where="post", label="replicas of gpt", color="tab:green", linewidth=2)
    below.step(at_s, trace.nodes, where="post", label="worker nodes", color="tab:orange", linewidth=2)
    below.set_ylabel("running")
    below.set_xlabel("seconds since the load began")
    below.set_ylim(0, max(*trace.nodes, *trace.replicas) + 1.2)
    below.yaxis.get_major_locator().set_params(integer=True)
    below.legend(loc="upper center", ncols=2, frameon=False)
    for axes in (above, below):
        axes.axvline(trace.load_ended_s - trace.load_began_s, color="grey", linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    picture = ROOT / ".demo" / "load.png"
    picture.parent.mkdir(exist_ok=True)
    figure.savefig(picture, dpi=110)
    say(f"picture of the load: {picture}")
