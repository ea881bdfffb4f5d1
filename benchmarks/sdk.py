"""One prediction through the SDK against the same request by hand with httpx: `make bench-sdk`.

The ingress runs under uvicorn in a process of its own, with a model that answers at once, so that all there
is to measure is the client and the ingress. The contestants take turns request by request, in any order, so
that a noisy machine slows all of them; the figure is the difference of their medians, in chunks of 200
requests. "by hand" is what a user would write: a dict with `.tolist()`, `json=`, `.json()`, `numpy.array`.
"bytes" sends a prepared body and reads no answer: the floor. Prints a table, writes
benchmarks/results/sdk.json and sdk.png.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing as mp
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tests")]

from eagleray.client import AsyncClient, Client  # noqa: E402

WARM_UP, REQUESTS, CHUNK, LIMIT_MS = 200, 3000, 200, 0.1
IMAGE = (np.arange(64, dtype=np.float32) % 17).reshape(1, 1, 8, 8)
PATH = "/v2/models/digits/infer"
Times = dict[str, list[float]]
T = TypeVar("T")


def main() -> int:
    """Measure; returns 1 where the SDK costs more than LIMIT_MS over httpx by hand."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        times = measure(ours.recv())
        times |= asyncio.run(measure_async(ours.recv()))
    finally:
        server.kill()
        server.join()
    pairs = {"Client": "httpx by hand", "AsyncClient": "httpx by hand, async"}
    over_ms = {name: statistics.median(differences(times, name, base)) for name, base in pairs.items()}
    print(f"\n{'one request':<22} {'p50 ms':>8} {'p99 ms':>8}")
    for name, turns in times.items():
        print(f"{name:<22} {p50_ms(turns):>8.3f} {p99_ms(turns):>8.3f}")
    for name, base in pairs.items():
        low, _, high = statistics.quantiles(differences(times, name, base), n=4)
        print(f"{name} - {base}: {over_ms[name]:+.3f} ms (quartiles {low:+.3f} .. {high:+.3f})")
    save(times, over_ms)
    print(f"limit: +{LIMIT_MS} ms")
    return int(over_ms["Client"] > LIMIT_MS)


def serve(to: Connection) -> None:
    """The ingress, until this process is killed; tells its address."""
    from support.serving import pretend, serving

    with serving(pretend()) as ingress:
        to.send(ingress.url)
        to.send(ingress.url)
        time.sleep(3600)


def by_hand() -> dict[str, Any]:
    """The body that a user would write."""
    data = {"name": "image", "shape": list(IMAGE.shape), "datatype": "FP32", "data": IMAGE.ravel().tolist()}
    return {"inputs": [data]}


def read_by_hand(values: dict[str, Any]) -> Any:
    """The outputs that a user would take out of the answer."""
    return {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in values["outputs"]}


def measure(url: str) -> Times:
    """Seconds of each request of the blocking contestants."""
    body = json.dumps(by_hand()).encode()
    with httpx.Client(trust_env=False) as bare, Client(url) as client:
        contestants: dict[str, Callable[[], Any]] = {
            "bytes": lambda: bare.post(url + PATH, content=body).content,
            "httpx by hand": lambda: read_by_hand(bare.post(url + PATH, json=by_hand()).json()),
            "Client": lambda: client.predict("digits", IMAGE),
        }
        assert client.predict("digits", IMAGE).label == str(int(IMAGE.sum()) % 10)
        times: Times = {name: [] for name in contestants}
        for number in range(-WARM_UP, REQUESTS):
            for name, ask in in_any_order(contestants):
                taken = timed(ask)
                if number >= 0:
                    times[name].append(taken)
    return times


async def measure_async(url: str) -> Times:
    """As `measure`, for those with an event loop."""
    async with httpx.AsyncClient(trust_env=False) as bare, AsyncClient(url) as client:

        async def ask_by_hand() -> Any:
            return read_by_hand((await bare.post(url + PATH, json=by_hand())).json())

        contestants: dict[str, Callable[[], Awaitable[Any]]] = {
            "httpx by hand, async": ask_by_hand,
            "AsyncClient": lambda: client.predict("digits", IMAGE),
        }
        times: Times = {name: [] for name in contestants}
        for number in range(-WARM_UP, REQUESTS):
            for name, ask in in_any_order(contestants):
                started = time.perf_counter()
                await ask()
                if number >= 0:
                    times[name].append(time.perf_counter() - started)
    return times


def in_any_order(contestants: dict[str, T]) -> list[tuple[str, T]]:
    """Shuffled, for who comes first finds other things in the caches."""
    return random.sample(list(contestants.items()), len(contestants))


def timed(ask: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    ask()
    return time.perf_counter() - started


def differences(times: Times, name: str, base: str) -> list[float]:
    """Milliseconds of `name` over `base`, of their medians, in each CHUNK of requests."""
    return [
        p50_ms(times[name][start : start + CHUNK]) - p50_ms(times[base][start : start + CHUNK])
        for start in range(0, REQUESTS, CHUNK)
    ]


def p50_ms(times: list[float]) -> float:
    """The median, in milliseconds."""
    return statistics.median(times) * 1e3


def p99_ms(times: list[float]) -> float:
    """Of a hundred, one takes longer; in milliseconds."""
    return statistics.quantiles(times, n=100)[98] * 1e3


def save(times: Times, over_ms: dict[str, float]) -> None:
    """Write the numbers and a picture of them."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    RESULTS.mkdir(exist_ok=True)
    rows = {name: {"p50_ms": p50_ms(turns), "p99_ms": p99_ms(turns)} for name, turns in times.items()}
    found = {"requests": REQUESTS, "rows": rows, "over_by_hand_ms": over_ms, "limit_ms": LIMIT_MS}
    (RESULTS / "sdk.json").write_text(json.dumps(found, indent=1) + "\n")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, turns in times.items():
        in_order = np.sort(np.array(turns)) * 1e3
        axes.plot(in_order, np.linspace(0, 1, len(in_order)), label=name)
    limit = max(p99_ms(turns) for turns in times.values())
    axes.set(xlabel="milliseconds", ylabel="requests that took at most so long", xlim=(0, limit))
    axes.set_title("One small prediction, client to ingress and back")
    axes.legend(loc="lower right")
    figure.savefig(RESULTS / "sdk.png", dpi=120)


if __name__ == "__main__":
    sys.exit(main())
