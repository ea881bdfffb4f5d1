"""The training loop. This page is the whole of it: batch, forward, backward, step, report, commit.

Gradients cross ranks inside `backward` (compression's hook), sums of metrics in `parts.agreement`, and
nothing else does. Every decision below is taken from values that all ranks hold alike, so that all of them
take it at the same step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from eagleray import device
from eagleray.data import Shard
from eagleray.errors import TrainingError
from eagleray.training.evaluate import evaluate
from eagleray.training.optimizers import learning_rate, set_learning_rate
from eagleray.training.parts import Parts
from eagleray.training.progress import Progress
from eagleray.training.telemetry import Sink

LOG_EVERY_STEPS = 20


def train(parts: Parts, progress: Progress, sink: Sink, commit: Callable[[Progress], None]) -> Progress:
    """Train from `progress` to the end of the run; returns where it ended.

    The parts' module, optimizer and scaler hold the trained state afterwards. `commit` is called every
    `checkpoint.every_steps` steps and at the end, on all ranks at the same step.

    Raises:
        TrainingError: a gradient is not finite; names the step and the parameter.
        PeerLost: another rank stopped answering.
    """
    spec, total_steps = parts.spec, parts.total_steps
    if progress.step >= total_steps or progress.is_stopped_early:
        return progress
    meter, first_step = Meter(parts), progress.step + 1
    shards = parts.loader.iterate(progress.consumed, parts.rank, parts.world_size)
    for shard in shards:
        step = progress.step + 1
        lr = learning_rate(spec.optimizer.lr, spec.schedule, step, total_steps)
        set_learning_rate(parts.optimizer, lr)
        seed_dropout(parts, step)
        meter.add(backward(parts, shard), shard)
        clip_and_check(parts, step)
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
        parts.optimizer.zero_grad(set_to_none=True)
        progress = progress.advanced(shard.consumed, shard.epoch)
        sink.at(step)

        is_last = step == total_steps
        if step % LOG_EVERY_STEPS == 0 or is_last or step == first_step:
            meter.report(sink, progress, lr)
        is_evaluated = is_evaluation_due(parts, progress) or is_last
        if is_evaluated:
            progress = evaluate_and_judge(parts, progress, sink)
        if is_last or progress.is_stopped_early:
            break
        if step % spec.checkpoint.every_steps == 0 or (is_evaluated and spec.checkpoint.at_evaluations):
            commit(progress)
    shards.close()
    commit(progress)
    return progress


def backward(parts: Parts, shard: Shard) -> list[Tensor]:
    """Add the gradient of the global batch's mean loss to every parameter.

    Returns this rank's loss sums, one per micro-batch, on the device: reading them would wait for it.

    A rank's loss is its samples' sum over the global batch size, times the world size, because DDP's hook
    returns the mean over ranks: uneven shards and micro-batches then weigh each sample alike.
    """
    spec, scale = parts.spec, parts.world_size / shard.global_size
    arrays = (place_array(array, parts) for array in (shard.inputs, shard.targets, shard.weights))
    number = num_micro_batches(spec.training.accumulate, shard.global_size, parts.world_size)
    micro_batches = zip(*(array.tensor_split(number) for array in arrays), strict=True)
    sums = []
    for index, (inputs, targets, weights) in enumerate(micro_batches, start=1):
        is_last = index == number
        with nullcontext() if is_last else parts.model.no_sync():
            with device.autocast(parts.place, spec.training.precision):
                losses = parts.per_sample_loss(parts.model(inputs), targets)
            loss_sum = torch.dot(losses, weights.to(losses.dtype))
            objective = loss_sum * scale
            if is_last and spec.optimizer.l1 > 0:
                objective = objective + spec.optimizer.l1 * l1_norm(parts)
            parts.scaler.scale(objective).backward()
        sums.append(loss_sum.detach())
    return sums


def num_micro_batches(accumulate: int, global_size: int, world_size: int) -> int:
    """How many forwards each rank runs for one batch: as many on all, for SyncBatchNorm meets in each.

    At most `accumulate`, and no more than the smallest share has samples (one that is empty has a filler).
    """
    return min(accumulate, max(1, global_size // world_size))


def clip_and_check(parts: Parts, step: int) -> None:
    """Clip the gradient's norm if asked.

    The gradient is the ranks' mean, the same on all of them, so each finds by itself, and at the same step,
    that it is not finite.

    Raises:
        TrainingError: it is not finite, and no gradient scaler skips the step (one that is below 1 has
            skipped so many that the loss itself must be at fault).
    """
    parts.scaler.unscale_(parts.optimizer)
    gradients = [p.grad for p in parts.module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    may_skip = parts.scaler.is_enabled() and parts.scaler.get_scale() >= 1
    if not may_skip and not torch.isfinite(norm):
        raise TrainingError(not_finite(parts, step))
    if parts.spec.training.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parts.module.parameters(), parts.spec.training.clip_norm, norm)


def not_finite(parts: Parts, step: int) -> str:
    """The sentence for a gradient that is not finite: where, and what to try."""
    name = next(
        (
            name
            for name, parameter in parts.module.named_parameters()
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
        ),
        "(the norm overflowed)",
    )
    return (
        f"step {step}: the gradient of {name} is not finite, so the loss is not either; "
        f"lower optimizer.lr ({parts.spec.optimizer.lr:g}), set training.clip_norm, or look at the data"
    )


def evaluate_and_judge(parts: Parts, progress: Progress, sink: Sink) -> Progress:
    """Measure the validation part, if there is one, and let early stopping judge it."""
    if parts.dataset.validation is None:
        return progress
    metrics = {
        f"validation_{name}": value for name, value in evaluate(parts, parts.dataset.validation).items()
    }
    sink.put("evaluation", step=progress.step, part="validation", **metrics)
    judged = progress.judged(parts.spec.training.early_stopping, metrics)
    if judged.is_stopped_early:
        sink.put("note", text=f"stopped early at step {progress.step}: {parts.spec.training.early_stopping}")
    return judged


def is_evaluation_due(parts: Parts, progress: Progress) -> bool:
    """Every `evaluate_every_steps`, or else at the end of each epoch."""
    every = parts.spec.training.evaluate_every_steps
    if every is not None:
        return progress.step % every == 0
    return progress.consumed % parts.loader.num_samples == 0


def l1_norm(parts: Parts) -> Tensor:
    """Sum of the absolute values of all parameters."""
    return torch.stack([p.abs().sum() for p in parts.module.parameters() if p.requires_grad]).sum()


def place_array(array, parts: Parts) -> Tensor:
    """The numpy array on the run's device; floating input in the run's precision."""
    tensor = torch.from_numpy(array)
    dtype = device.dtype(parts.spec.training.precision) if tensor.is_floating_point() else tensor.dtype
    return tensor.to(parts.place.device, dtype, non_blocking=True)


def seed_dropout(parts: Parts, step: int) -> None:
    """Seed this rank's own randomness in a step by (seed, step, rank), so that none of it need be saved."""
    seed = (parts.spec.seed * 1_000_003 + step * 8_191 + parts.rank) % 2**63
    torch.default_generator.manual_seed(seed)
    if parts.place.device.type == "cuda":
        torch.cuda.manual_seed(seed)


class Meter:
    """Sums since the last report: loss, samples, time, bytes."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._reset()

    def _reset(self) -> None:
        self._since = time.perf_counter()
        self._num_steps = 0
        self._loss_sums: list[Tensor] = []
        self._num_samples = 0
        self._stats = self._parts.hook.stats()

    def add(self, loss_sums: list[Tensor], shard: Shard) -> None:
        """Count one step: this rank's loss sums, and the global batch."""
        self._loss_sums += loss_sums
        self._num_samples += shard.global_size
        self._num_steps += 1

    def report(self, sink: Sink, progress: Progress, lr: float) -> None:
        """Sum over the ranks, put a `step` record, and start again."""
        stats = self._parts.hook.stats()
        sums = self._parts.agreement.sum(
            {
                "loss": float(torch.stack(self._loss_sums).double().sum()),
                "sent_bytes": stats.sent_bytes - self._stats.sent_bytes,
                "uncompressed_bytes": stats.uncompressed_bytes - self._stats.uncompressed_bytes,
            }
        )
        sink.put(
            "step",
            step=progress.step,
            epoch=progress.epoch,
            consumed=progress.consumed,
            total_steps=self._parts.total_steps,
            loss=sums["loss"] / self._num_samples,
            learning_rate=lr,
            num_steps=self._num_steps,
            num_samples=self._num_samples,
            seconds=time.perf_counter() - self._since,
            sent_bytes=sums["sent_bytes"],
            uncompressed_bytes=sums["uncompressed_bytes"],
        )
        self._reset()
