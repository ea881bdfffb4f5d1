"""Part two: the same trainings with every scheme, to their end; final loss against dense, in pairs of a seed.

A character transformer under AdamW and a small CNN under SGD with momentum, 4 workers on loopback, through
the real hook. Data follow from the seed and the rank alone, so two runs of a seed differ by the scheme only.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import arithmetic
import report
import rig
import torch
from kit import keeping
from kit.progress import Progress
from schemes import WARMING, kinds
from tasks import TASKS, weights
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eagleray.compression import MomentumAdam
from eagleray.specs.compression import ADAM_PAIRS

NUM_WORKERS, RESTART_EVERY = 4, 25
WITHIN = {"int8": 0.005, "int4": 0.005, "onebit_adam": 0.01}
TOPK_ABOVE, RESTART_ABOVE = 0.03, 0.01
RUN_LIMIT_S = 900.0


@dataclass(frozen=True)
class Variant:
    """One line of a table."""

    name: str
    spec: dict[str, Any] | None
    """Of CompressionSpec; None: DDP without a hook."""
    restart_every: int | None = None
    nudge: float = 0.0
    """Relative change of the first weights."""

    @property
    def base(self) -> str:
        """Name of the line that this one is compared with."""
        return self.name.partition(", restarts")[0] if self.restart_every else "DDP dense"


def variants(task: str, only: list[str] | None) -> list[Variant]:
    """What is trained: dense, every kind, top-k with momentum correction, and some with restarts."""
    # Nudged: what training makes of a difference that means nothing. Nothing can be told apart more finely.
    found = [Variant("DDP dense", None), Variant("dense, nudged", None, nudge=1e-6)]
    for kind in kinds():
        is_pair = kind.endswith("_adam")
        if kind in ("none", "auto") or (only is not None and kind not in only) or (is_pair and task == "cnn"):
            continue
        # A twentieth of the run dense at first; the pairs need a variance before they freeze it.
        warm = {"warmup_steps": 60 if is_pair else 20}
        spec = {"kind": kind, **(warm if kind in WARMING else {})}
        found.append(Variant(kind, spec))
        if kind == "topk":
            found.append(Variant("topk corrected", {**spec, "momentum_correction": True}))
        if kind in ("int8", "int4", "topk", "powersgd", "onebit_adam"):
            found.append(Variant(f"{kind}, restarts", spec, RESTART_EVERY))
    return found


# In a worker


def train(
    task: str, seed: int, steps: int, spec: dict[str, Any] | None, restart_every: int | None, nudge: float
) -> dict[str, Any]:
    """One rank's share of a training; its share of the final loss, what its weights are, bytes and seconds.

    With `restart_every` the hook's state goes through `collect_state` into a new DDP with other buckets.
    """
    import torch.distributed as dist

    started, rank = time.perf_counter(), dist.get_rank()
    problem = TASKS[task]()
    torch.manual_seed(seed)
    module = problem.model()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1 + nudge)
    optimizer = _make_optimizer(task, spec, module)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    connection = _Connection(module, spec, optimizer)
    for step in range(steps):
        if restart_every and step and step % restart_every == 0:
            connection.restart(
                module, spec, optimizer, bucket_cap_mb=0.25 if step // restart_every % 2 else 25
            )
        x, y = problem.batch(generator)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(connection.model(x).flatten(0, -2), y.flatten()).backward()
        optimizer.step()
        schedule.step()
    module.eval()
    with torch.no_grad():
        x, y = (part.chunk(dist.get_world_size())[rank] for part in problem.held_out())
        loss = float(nn.functional.cross_entropy(module(x).flatten(0, -2), y.flatten()))
    result = {
        "loss": loss,
        **weights(module),
        "ratio": connection.ratio(),
        "seconds": time.perf_counter() - started,
    }
    connection.close()
    return result


class _Connection:
    """A module's DDP with its hook, which may be made anew."""

    def __init__(
        self,
        module: nn.Module,
        spec: dict[str, Any] | None,
        optimizer: torch.optim.Optimizer,
        bucket_cap_mb: float | None = None,
    ):
        from eagleray import compression
        from eagleray.specs.compression import CompressionSpec

        self.model = DistributedDataParallel(module, init_sync=False, bucket_cap_mb=bucket_cap_mb)
        self._hook = None
        if spec is not None:
            checked = CompressionSpec.model_validate(spec)
            self._hook = compression.attach(self.model, checked, optimizer=optimizer)

    def restart(
        self,
        module: nn.Module,
        spec: dict[str, Any] | None,
        optimizer: torch.optim.Optimizer,
        bucket_cap_mb: float,
    ) -> None:
        """As a run that goes on in new processes does; weights and optimizer are kept exactly anyhow."""
        states = [None if self._hook is None else self._hook.collect_state()]
        torch.distributed.broadcast_object_list(states)  # in place of a checkpoint
        self.close()
        self.__init__(module, spec, optimizer, bucket_cap_mb)
        if self._hook is not None:
            assert states[0] is not None
            self._hook.load_state_dict(states[0])

    def ratio(self) -> float | None:
        """Uncompressed over sent bytes."""
        stats = None if self._hook is None else self._hook.stats()
        return stats.uncompressed_bytes / stats.sent_bytes if stats and stats.sent_bytes else None

    def close(self) -> None:
        """End the hook's thread and group."""
        if self._hook is not None:
            self._hook.close()
        del self.model


def _make_optimizer(task: str, spec: dict[str, Any] | None, module: nn.Module) -> torch.optim.Optimizer:
    """AdamW for the transformer, SGD with momentum for the CNN; without momentum where the hook has it."""
    has_momentum = not (spec or {}).get("momentum_correction", False)
    if task == "char":
        if (spec or {}).get("kind") in ADAM_PAIRS:
            return MomentumAdam(module.parameters(), lr=1e-3)
        betas = (0.9 if has_momentum else 0.0, 0.999)
        return torch.optim.AdamW(module.parameters(), lr=1e-3, betas=betas)
    return torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9 if has_momentum else 0.0)


# In the parent


@dataclass
class Line:
    """What the runs of one variant gave, by seed."""

    variant: Variant
    losses: dict[int, float] = field(default_factory=dict)
    ratio: float | None = None
    are_replicas_equal: bool = True
    seconds: float = 0.0
    failure: str | None = None


def main(options: Any) -> int:
    """Train everything; prints a table per task, writes convergence.json."""
    progress = Progress()
    lines = {task: [Line(one) for one in variants(task, options.kinds)] for task in options.tasks}
    started = time.time()
    if (lacking := rig.build_kernels()) is not None:
        progress.line(lacking)
    crew = rig.Crew(NUM_WORKERS)
    try:
        for seed in range(options.seed, options.seed + options.seeds):
            for task, own in lines.items():
                for line in own:
                    progress.note(f"{task}, seed {seed}: {line.variant.name}")
                    _run(crew, task, line, seed, options.steps * TASKS[task].length)
                progress.line(f"{task}, seed {seed}: " + _losses(own, seed))
            _save(lines, options, started)
    except KeyboardInterrupt:
        progress.line("interrupted; what was trained is kept")
    finally:
        crew.close()
        progress.close()
    for task, own in lines.items():
        progress.line(table(task, own))
    progress.line(f"\n{(time.time() - started) / 60:.1f} minutes; {options.results}/convergence.json")
    return 0


def _run(crew: rig.Crew, task: str, line: Line, seed: int, steps: int) -> None:
    if line.failure is not None:
        return
    variant = line.variant
    arguments = (task, seed, steps, variant.spec, variant.restart_every, variant.nudge)
    try:
        done = crew.call("train", *arguments, limit_s=RUN_LIMIT_S)
    except rig.SchemeFailed as error:
        line.failure = str(error)
        crew.restart()
        return
    if not all(one["is_finite"] for one in done):
        line.failure = f"seed {seed}: its weights are not finite"
        return
    line.losses[seed] = statistics.mean(one["loss"] for one in done)
    line.are_replicas_equal &= len({one["digest"] for one in done}) == 1
    line.ratio = done[0]["ratio"]
    line.seconds = done[0]["seconds"]


def summary(line: Line, lines: list[Line]) -> dict[str, Any]:
    """A variant's mean loss, and paired differences with their 95 % intervals: absolute, and relative."""
    base = next(one for one in lines if one.variant.name == line.variant.base)
    both = sorted(line.losses.keys() & base.losses.keys())
    found: dict[str, Any] = {"scheme": line.variant.name, "losses": line.losses, "failure": line.failure}
    if both:
        above = [line.losses[seed] - base.losses[seed] for seed in both]
        relative = [line.losses[seed] / base.losses[seed] - 1 for seed in both]
        found |= {
            "compared_with": base.variant.name,
            "loss": statistics.mean(line.losses.values()),
            "above": arithmetic.paired_interval(above),
            "relative": arithmetic.paired_interval(relative),
            "compression_ratio": line.ratio,
            "replicas_equal": line.are_replicas_equal,
            "seconds_per_run": line.seconds,
        }
        found["aim"], found["holds"] = _judge(line.variant, found)
    return found


def _judge(variant: Variant, found: dict[str, Any]) -> tuple[str | None, bool | None]:
    """The issue's aim for a line, and whether it holds; an interval's aim needs the whole interval inside."""
    _, low, high = found["relative"]
    if variant.restart_every:
        return f"≤ {RESTART_ABOVE} above", found["above"][0] <= RESTART_ABOVE
    if variant.name == "topk corrected":
        return f"≤ {TOPK_ABOVE} above", found["above"][0] <= TOPK_ABOVE
    if variant.name in WITHIN:
        within = WITHIN[variant.name]
        return f"within ±{within:.1%}", -within <= low and high <= within
    return None, None


def table(task: str, lines: list[Line]) -> str:
    """One task's lines, markdown."""
    what = {"char": "character transformer, AdamW", "cnn": "CNN on digits in noise, SGD with momentum"}[task]
    out = [
        f"\n### {what}: final loss on held-out data, paired with dense (or with the run without restarts)\n",
        "| scheme | loss | above (95 %) | relative (95 %) | bytes saved | equal | aim | holds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        s = summary(line, lines)
        if "loss" not in s:
            out.append(f"| {s['scheme']} | fails: {s['failure'] or 'not reached'} | | | | | | |")
            continue
        above, relative = s["above"], s["relative"]
        saved = "" if s["compression_ratio"] is None else f"{s['compression_ratio']:.1f}x"
        compared = line.variant.name != s["compared_with"]
        out.append(
            f"| {s['scheme']} | {s['loss']:.4f} | "
            + (f"{above[0]:+.4f} ({above[1]:+.4f} to {above[2]:+.4f})" if compared else "")
            + " | "
            + (f"{relative[0]:+.2%} ({relative[1]:+.2%} to {relative[2]:+.2%})" if compared else "")
            + f" | {saved}"
            + f" | {'yes' if s['replicas_equal'] else 'NO'} | {s['aim'] or ''} "
            + f"| {'' if s['holds'] is None else 'yes' if s['holds'] else 'NO'} |"
        )
    return "\n".join(out)


def _losses(lines: list[Line], seed: int) -> str:
    return ", ".join(f"{one.variant.name} {one.losses.get(seed, math.nan):.4f}" for one in lines)


def _save(lines: dict[str, list[Line]], options: Any, started: float) -> None:
    found = {
        "machine": report.machine(),
        "workers": NUM_WORKERS,
        "steps": options.steps,
        "seconds": time.time() - started,
        "tasks": {task: [summary(one, own) for one in own] for task, own in lines.items()},
    }
    keeping.write(found, options.results / "convergence.json")
