"""GB/s of each codec and operation on one CPU core, next to memcpy: `make bench-codecs`.

10.24 M float32 numbers in ten matrices of 1000 x 1024 (2500 tiles). GB/s counts 4 bytes for each number of
the gradient, whatever else an operation reads and writes: encoding with error feedback also reads and writes
the residual, `reduce` reads four payloads. memcpy copies the same gradient. Seconds are CPU seconds of the
thread, which a busy machine disturbs less; the call and memcpy take turns, the figure is the median, the
ratio that of neighbouring turns. Prints a table, writes benchmarks/results/codecs.json; returns 1 where int8
with error feedback is slower than LIMIT_GB.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

RESULTS = Path(__file__).resolve().parent / "results"
sys.path.insert(0, str(RESULTS.parent.parent / "platform"))

from eagleray.compression.codec import Codec, pack  # noqa: E402
from eagleray.compression.kernels import (  # noqa: E402
    BLOCKS,
    CODECS,
    codec,
    eager,
    passes_for,
    ring,
    ring_for,
    sparse,
    sparse_for,
    wait,
)
from eagleray.compression.kernels.passes import EagerPasses, Passes  # noqa: E402
from eagleray.compression.layout import Bucket, Layout, Place, cut  # noqa: E402

TURNS, EAGER_TURNS, NUM_RANKS, LIMIT_GB = 21, 5, 4, 6.0
NUM_STEPS = 3
"""Gradients that topk gets in turn: were it one, what is kept would be the same numbers for ever."""
Operations = dict[str, Callable[[], object]]


def main() -> int:
    """Measure."""
    torch.set_num_threads(1)
    wait()
    layout = Layout(((f"w{i}", (1000, 1024)) for i in range(10)), world_size=NUM_RANKS)
    places = tuple(layout.places.values())
    tiles = cut(Bucket(places, tuple(place.start for place in places)), layout)
    sizes = torch.randn(layout.numel).abs()
    gradient, *others = (torch.randn(layout.numel) * sizes for _ in range(NUM_STEPS))
    copy = torch.empty_like(gradient)
    spans = torch.tensor([(place.start, place.numel) for place in places])
    figures: dict[str, dict[str, float]] = {}
    print(f"{'GB/s (ratio to memcpy)':<22}{'compiled':>18}{'torch':>18}")
    contestants: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    for name in CODECS:
        compiled, reference = codec(name), eager.make(name, BLOCKS.get(name, 1), torch.float32)
        ours, theirs = (operations(each, gradient, tiles) for each in (compiled, reference))
        contestants |= {f"{name} {verb}": (ours[verb], theirs[verb]) for verb in ours}
    pairs = [
        [scans(each, gradient, spans) for each in (passes_for("cpu"), EagerPasses())],
        [summed(each, gradient, places) for each in (ring_for("cpu"), ring.EagerRing())],
        *(
            [
                largest(each, [gradient, *others], places, beta)
                for each in (sparse_for("cpu"), sparse.EagerSparse())
            ]
            for beta in (0.0, 0.9)
        ),
    ]
    contestants |= {verb: (ours[verb], theirs[verb]) for ours, theirs in pairs for verb in ours}
    for title, pair in contestants.items():
        row = figures[title] = {}
        for kind, call, turns in zip(("compiled", "torch"), pair, (TURNS, EAGER_TURNS), strict=True):
            rate, ratio = measure(call, lambda: copy.copy_(gradient), turns, gradient.nbytes)
            row |= {f"{kind}_gb_per_s": round(rate, 2), f"{kind}_to_memcpy": round(ratio, 3)}
        cells = [f"{row[f'{k}_gb_per_s']:.1f} ({row[f'{k}_to_memcpy']:.2f})" for k in ("compiled", "torch")]
        print(f"{title:<22}{cells[0]:>18}{cells[1]:>18}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "codecs.json").write_text(json.dumps(figures, indent=2) + "\n")
    found = figures["int8 encode"]["compiled_gb_per_s"]
    print(f"int8 with error feedback: {found:.1f} GB/s (at least {LIMIT_GB:.0f})")
    return int(found < LIMIT_GB)


def operations(each: Codec, gradient: torch.Tensor, tiles: torch.Tensor) -> Operations:
    """What a codec does, on buffers of its own; those that lose keep a residual."""
    tiles = tiles.clone()
    end = pack(tiles, each)
    payloads = [torch.zeros(end, dtype=torch.uint8) for _ in range(NUM_RANKS)]
    mean, out = torch.zeros(end, dtype=torch.uint8), torch.zeros_like(gradient)
    residual = torch.zeros_like(gradient) if each.keeps_residual else None
    for payload in payloads:
        each.encode(gradient, tiles, payload)
    return {
        "encode": lambda: each.encode(gradient, tiles, payloads[0], residual),
        "decode": lambda: each.decode(payloads[1], tiles, out),
        "add": lambda: each.decode(payloads[1], tiles, out, accumulate=True, factor=0.25),
        f"reduce {NUM_RANKS}": lambda: each.reduce(payloads, tiles, mean, residual),
    }


def scans(each: Passes, gradient: torch.Tensor, spans: torch.Tensor) -> Operations:
    """Passes over a gradient."""
    return {"absmax": lambda: each.absmax(gradient, spans)}


def summed(each: ring.RingCodec, gradient: torch.Tensor, places: Sequence[Place]) -> Operations:
    """What int8_ring does, on buffers of its own."""
    block, levels = BLOCKS["int8"], 127 // NUM_RANKS
    parts = [slice(place.start, place.start + place.numel) for place in places]
    quanta = [ring.largest(gradient[part], block) / levels for part in parts]
    residual, out = torch.zeros_like(gradient), torch.zeros_like(gradient)
    codes = torch.zeros(gradient.numel(), dtype=torch.int8)

    def encode() -> None:
        for part, by in zip(parts, quanta, strict=True):
            each.encode(gradient[part], residual[part], by, codes[part], block=block, levels=levels)

    def decode() -> None:
        for part, by in zip(parts, quanta, strict=True):
            each.decode(codes[part], by, out[part], block=block)

    return {"int8_ring encode": encode, "int8_ring decode": decode}


def largest(
    each: sparse.SparseCodec, gradients: Sequence[torch.Tensor], places: Sequence[Place], beta: float
) -> Operations:
    """What topk does with the largest 1 % of each parameter, with a momentum beta, on buffers of its own."""
    rows, end = [], 0
    for index, place in enumerate(places):
        k = place.numel // 100
        rows.append([place.start, place.start, place.numel, end, index, k, 1])
        end += sparse.payload_bytes(place.numel, k)
    units, payload = torch.tensor(rows), torch.zeros(end, dtype=torch.uint8)
    residual, out = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0])
    momentum = torch.zeros_like(residual) if beta else None
    states = torch.full((len(rows),), sparse.USED, dtype=torch.uint8)
    thresholds = torch.zeros(len(rows))
    steps = itertools.cycle(gradients)

    def encode() -> None:
        each.encode(
            next(steps), units, payload, residual, states, thresholds=thresholds, momentum=momentum, beta=beta
        )

    encode()
    if beta:
        return {"largest 1 %, momentum": encode}
    return {
        "largest 1 % encode": encode,
        f"largest 1 % add {NUM_RANKS}": lambda: each.decode([payload] * NUM_RANKS, units, out),
    }


def measure(
    call: Callable[[], object], memcpy: Callable[[], object], turns: int, num_bytes: int
) -> tuple[float, float]:
    """Median GB/s of the call, and the median ratio of its rate to memcpy's in the same turn."""
    seconds: list[float] = []
    ratios: list[float] = []
    for turn in range(-2, turns):
        base, taken = cpu_s(memcpy), cpu_s(call)
        if turn >= 0:
            seconds.append(taken)
            ratios.append(base / taken)
    return num_bytes / statistics.median(seconds) / 1e9, statistics.median(ratios)


def cpu_s(call: Callable[[], object]) -> float:
    """CPU seconds of this thread."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


if __name__ == "__main__":
    sys.exit(main())
