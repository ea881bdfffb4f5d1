"""Tokens per CPU second of the GPT with and without its cache, one thread: `make bench-generation`.

The model of examples/train/gpt.toml with a context of 128, untrained (the work is the same), top_p 0.95.
Nothing waits, so on a quiet machine CPU seconds are seconds, and on a busy one they disturb the figure less.
The two take turns; the ratio is that of neighbouring turns. Prints a table, writes
benchmarks/results/generation.json and generation.png.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eagleray import models
from eagleray.specs import Signature, TrainSpec, load

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
CONTEXT, TURNS = 128, 15
LENGTHS = {"120 tokens (all in the context)": 120, "512 tokens (the window hops)": 512}


class Uncached(nn.Module):
    """The model without its cache: each token costs a pass over the whole window."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, T, vocabulary]."""
        return self.module(tokens)


def main() -> int:
    """Measure; returns 1 if the cache does not pay."""
    torch.set_num_threads(1)
    module = gpt()
    rates: dict[str, dict[str, list[float]]] = {}
    print(f"{'':<34} {'cached':>8} {'uncached':>9} tokens/s   {'ratio (median, quartiles)':>26}")
    for title, num_tokens in LENGTHS.items():
        turns = rates[title] = {"cached": [], "uncached": []}
        for turn in range(-1, TURNS):
            for name, contestant in (("cached", module), ("uncached", Uncached(module))):
                rate = tokens_per_s(contestant, num_tokens)
                if turn >= 0:
                    turns[name].append(rate)
        low, middle, high = ratio(turns)
        cached, uncached = (statistics.median(turns[name]) for name in ("cached", "uncached"))
        print(f"{title:<34} {cached:>8.0f} {uncached:>9.0f} {middle:>21.2f}  ({low:.2f} .. {high:.2f})")
    save(rates)
    return int(any(ratio(turns)[1] < 1 for turns in rates.values()))


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


def tokens_per_s(module: nn.Module, num_tokens: int) -> float:
    """Of one completion of a prompt of four tokens; seconds of CPU time."""
    sampler = models.Sampler(0.7, 0.95, torch.Generator().manual_seed(0), num_choices=256)
    started = time.process_time()
    made = models.complete(module, list(b"def "), num_tokens=num_tokens, sampler=sampler, context=CONTEXT)
    return len(list(made)) / (time.process_time() - started)


def ratio(turns: dict[str, list[float]]) -> Any:
    """Quartiles of cached / uncached of neighbouring turns."""
    return statistics.quantiles([a / b for a, b in zip(turns["cached"], turns["uncached"], strict=True)], n=4)


def save(rates: dict[str, dict[str, list[float]]]) -> None:
    """The figures as JSON, and a picture of the turns."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "generation.json").write_text(json.dumps(rates, indent=2) + "\n")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for title, turns in rates.items():
        for name, values in turns.items():
            axes.plot(values, marker="o", label=f"{name}, {title}")
    axes.set(
        xlabel="turn", ylabel="tokens per CPU second", title="GPT, context 128, one thread", ylim=(0, None)
    )
    axes.legend()
    FigureCanvasAgg(figure).print_png(str(RESULTS / "generation.png"))


if __name__ == "__main__":
    sys.exit(main())
