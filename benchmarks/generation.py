"""Tokens per CPU second of the GPT, one thread: `make bench-generation`.

With its cache against without, and 16 texts at once (inference/continuous.py) against one after the other
(`generate`). The model of examples/train/gpt.toml with a context of 128, untrained (the work is the same),
top_p 0.95. Nothing waits, so on a quiet machine CPU seconds are seconds, and on a busy one they disturb the
figure less. The two of a row take turns; the ratio is that of neighbouring turns. Prints a table, writes
benchmarks/results/generation.json and generation.png.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eagleray import models
from eagleray.data import ByteTokenizer
from eagleray.inference.continuous import ContinuousEngine
from eagleray.inference.generation import generate
from eagleray.protocol.generation import GenerationRequest
from eagleray.specs import Signature, TrainSpec, load

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
CONTEXT, TURNS, STREAMS = 128, 15, 16
LENGTHS = {"120 tokens (all in the context)": 120, "512 tokens (the window hops)": 512}
LEAST = {("cached", "uncached"): 1.0, ("16 at once", "one by one"): 6.0}
"""Ratios that must be reached."""


class Uncached(nn.Module):
    """The model without its cache: each token costs a pass over the whole window."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, T, vocabulary]."""
        return self.module(tokens)


def main() -> int:
    """Measure; returns 1 if the cache or the batch does not pay as it must."""
    torch.set_num_threads(1)
    module = gpt()
    tokens_per_s: dict[str, Callable[[int], float]] = {
        "cached": lambda num_tokens: completed(module, num_tokens),
        "uncached": lambda num_tokens: completed(Uncached(module), num_tokens),
        "16 at once": lambda num_tokens: at_once(module, num_tokens),
        "one by one": lambda num_tokens: one_by_one(module, num_tokens),
    }
    rates: dict[str, dict[str, list[float]]] = {}
    has_missed = False
    print(f"{'tokens per CPU second':<58} {'first':>8} {'second':>8}   {'ratio (median, quartiles)':>26}")
    for names, least in LEAST.items():
        for length, num_tokens in LENGTHS.items():
            title = f"{' / '.join(names)}, {length}"
            turns = rates[title] = {name: [] for name in names}
            for turn in range(-1, TURNS):
                for name in names:
                    rate = tokens_per_s[name](num_tokens)
                    if turn >= 0:
                        turns[name].append(rate)
            low, middle, high = ratio(turns)
            first, second = map(statistics.median, turns.values())
            verdict = f"({low:.2f} .. {high:.2f})" + (f", goal {least:g}" if middle < least else "")
            has_missed |= middle < least
            print(f"{title:<58} {first:>8.0f} {second:>8.0f} {middle:>13.2f}  {verdict}")
    save(rates)
    return int(has_missed)


def gpt() -> nn.Module:
    """The example's model."""
    spec = load(TrainSpec, ROOT / "examples/train/gpt.toml", [])
    signature = Signature(
        input_kind="text",
        input_shape=(CONTEXT,),
        target_kind="tokens",
        target_shape=(CONTEXT,),
        vocabulary_size=258,
        tokenizer="bytes",
    )
    torch.manual_seed(0)
    return models.build(spec.model, signature).eval()


def completed(module: nn.Module, num_tokens: int) -> float:
    """Of one completion of a prompt of four tokens; tokens per second of CPU time."""
    sampler = models.Sampler(0.7, 0.95, torch.Generator().manual_seed(0), num_choices=256)
    started = time.process_time()
    made = models.complete(module, list(b"def "), num_tokens=num_tokens, sampler=sampler, context=CONTEXT)
    return len(list(made)) / (time.process_time() - started)


def requests(num_tokens: int) -> list[GenerationRequest]:
    """Of 16 callers, each with a seed of its own."""
    return [
        GenerationRequest("def ", max_tokens=num_tokens, temperature=0.7, top_p=0.95, seed=seed)
        for seed in range(STREAMS)
    ]


def one_by_one(module: nn.Module, num_tokens: int) -> float:
    """Of the first two requests (more would be no other rate), one after the other."""
    asked = requests(num_tokens)[:2]
    started = time.process_time()
    for request in asked:
        for _ in generate(module, ByteTokenizer(), request, context=CONTEXT):
            pass
    return len(asked) * num_tokens / (time.process_time() - started)


def at_once(module: nn.Module, num_tokens: int) -> float:
    """Of all requests, submitted together; from nothing computed to the last text's end."""
    engine = ContinuousEngine(module, ByteTokenizer(), CONTEXT, slots=STREAMS, max_waiting=STREAMS)
    started = time.process_time()
    for request in requests(num_tokens):
        engine.submit(request, lambda _: None, lambda _: None)
    while engine.step():
        pass
    assert engine.counts.made == STREAMS * num_tokens
    return engine.counts.made / (time.process_time() - started)


def ratio(turns: dict[str, list[float]]) -> Any:
    """Quartiles of the first / the second of neighbouring turns."""
    return statistics.quantiles([a / b for a, b in zip(*turns.values(), strict=True)], n=4)


def save(rates: dict[str, dict[str, list[float]]]) -> None:
    """The figures as JSON, and a picture of the turns."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "generation.json").write_text(json.dumps(rates, indent=2) + "\n")
    figure = Figure(figsize=(9, 8), layout="constrained")
    for axes, (title, turns) in zip(figure.subplots(2, 2).flat, rates.items(), strict=True):
        for name, values in turns.items():
            axes.plot(values, marker="o", label=name)
        axes.set(xlabel="turn", ylabel="tokens per CPU second", ylim=(0, None))
        axes.set_title(title, fontsize="small")
        axes.legend()
    figure.suptitle("GPT, context 128, one thread")
    FigureCanvasAgg(figure).print_png(str(RESULTS / "generation.png"))


if __name__ == "__main__":
    sys.exit(main())
