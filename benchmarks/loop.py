"""One training step in our loop against the same step in a bare torch DDP script: `make bench-loop`.

Two processes on loopback gloo, one thread each, the CNN of examples/train/digits.toml. The two loops take
turns in the same processes, so that a noisy machine slows both; the figure is the median of the ratios of
neighbouring turns. Prints a table, writes benchmarks/results/loop.json and loop.png.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
TURNS, STEPS, LIMIT = 15, 100, 1.15


def main() -> int:
    """Measure; returns 1 where the loop costs more than LIMIT times the bare script."""
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=rank_main, args=(rank, folder)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            return 2
        times = json.loads(Path(folder, "times.json").read_text())
    rows = [(kind, *summarise(times, kind)) for kind in ("loop none", "loop auto", "loop bf16")]
    bare = statistics.median(times["bare"])
    print(f"\n{'step of':<12} {'median ms':>10} {'ratio to bare (median, quartiles)':>36}")
    print(f"{'bare DDP':<12} {bare * 1e3:>10.2f}")
    for kind, median, (low, middle, high) in rows:
        print(f"{kind:<12} {median * 1e3:>10.2f} {middle:>20.3f}  ({low:.3f} .. {high:.3f})")
    save(times, rows)
    ratio = rows[0][2][1]
    print(f"\nloop / bare = {ratio:.3f} (limit {LIMIT})")
    return int(ratio > LIMIT)


def summarise(times: dict[str, list[float]], kind: str) -> tuple[float, tuple[float, float, float]]:
    """Median seconds of a step, and quartiles of the ratio to the neighbouring bare turn."""
    ratios = [ours / bare for ours, bare in zip(times[kind], times["bare"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return statistics.median(times[kind]), (low, middle, high)


def rank_main(rank: int, folder: str) -> None:
    """All turns of one rank; rank 0 writes the times."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch

    from eagleray import groups

    torch.set_num_threads(1)
    groups.form(store_path=f"{folder}/store", rank=rank, world_size=2, backend="gloo", timeout_s=120)
    contestants = {
        "bare": Bare(rank),
        **{f"loop {kind}": Ours(rank, kind, folder) for kind in ("none", "auto", "bf16")},
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(-2, TURNS):
        for name, contestant in contestants.items():
            torch.distributed.barrier()
            started = time.perf_counter()
            contestant.steps(STEPS)
            torch.distributed.barrier()
            if turn >= 0:
                times[name].append((time.perf_counter() - started) / STEPS)
        if rank == 0 and turn >= 0:
            print(
                f"turn {turn + 1}/{TURNS}: "
                + "  ".join(f"{k} {v[-1] * 1e3:.2f} ms" for k, v in times.items())
            )
    if rank == 0:
        Path(folder, "times.json").write_text(json.dumps(times))


def digits_spec(compression: str) -> Any:
    """examples/train/digits.toml, long enough, without evaluations or checkpoints in between."""
    from eagleray.specs import TrainSpec, load

    return load(
        TrainSpec,
        ROOT / "examples/train/digits.toml",
        [
            f"compression.kind='{compression}'",
            "training.epochs=100000",
            "training.evaluate_every_steps=1000000000",
            "checkpoint.every_steps=1000000000",
            "scaling.gpus_per_worker=0",
        ],
    )


class Ours:
    """The loop page, driven by its own loader, telemetry and agreement."""

    def __init__(self, rank: int, compression: str, folder: str):
        from eagleray.training.life import Life
        from eagleray.training.station import Formation, Station
        from eagleray.training.telemetry import Buffer

        self.life = Life(digits_spec(compression), f"{folder}/{compression}", Buffer(), Station())
        self.life.prepare()
        self.life.join(Formation(1, rank, 2, "", 0))
        self.life.commit = lambda: None  # the bare script saves nothing either

    def steps(self, count: int) -> None:
        """Take so many steps, as a run that ends there would."""
        from eagleray.training import loop

        parts, progress = self.life.parts, self.life.progress
        assert parts is not None
        training = parts.spec.training.model_copy(update={"epochs": None, "steps": progress.step + count})
        spec = parts.spec.model_copy(update={"training": training})
        dataset = replace(parts.dataset, validation=None)  # the bare script evaluates nothing either
        loop.train(replace(parts, spec=spec, dataset=dataset), self.life)


class Bare:
    """What a careful person writes with torch alone: the same model, batch, optimizer and schedule."""

    def __init__(self, rank: int):
        import torch
        from torch.nn.parallel import DistributedDataParallel

        from eagleray import data, models

        spec = digits_spec("none")
        dataset = data.open_dataset(spec.data)
        arrays = dataset.train.fetch(range_of(dataset.train.num_samples))
        self.inputs, self.targets = torch.from_numpy(arrays.inputs), torch.from_numpy(arrays.targets)
        torch.manual_seed(spec.seed)
        self.model = DistributedDataParallel(
            models.build(spec.model, dataset.signature), gradient_as_bucket_view=True
        )
        optimizer = spec.optimizer
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=optimizer.lr, weight_decay=optimizer.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 100_000)
        self.loss = torch.nn.CrossEntropyLoss()
        self.rank, self.batch_size = rank, spec.training.global_batch_size // 2

    def steps(self, count: int) -> None:
        """Take so many steps on this rank's random batches."""
        import torch

        for _ in range(count):
            chosen = torch.randint(len(self.inputs), (self.batch_size,))
            loss = self.loss(self.model(self.inputs[chosen]), self.targets[chosen])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()


def range_of(count: int) -> Any:
    """0, 1, … as positions."""
    import numpy as np

    return np.arange(count)


def save(times: dict[str, list[float]], rows: list[Any]) -> None:
    """The figures as JSON, and a picture of the turns."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    RESULTS.mkdir(exist_ok=True)
    summary = {kind: {"median_s": median, "ratio_quartiles": ratio} for kind, median, ratio in rows}
    (RESULTS / "loop.json").write_text(json.dumps({"turns": times, "summary": summary}, indent=2) + "\n")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in times.items():
        axes.plot([value * 1e3 for value in values], marker="o", label=name)
    axes.set(xlabel="turn", ylabel="ms per step", title="digits CNN, 2 processes", ylim=(0, None))
    axes.legend()
    FigureCanvasAgg(figure).print_png(str(RESULTS / "loop.png"))


if __name__ == "__main__":
    sys.exit(main())
