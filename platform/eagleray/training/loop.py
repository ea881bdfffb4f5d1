"""The training loop. This page is the whole of it: batch, forward, backward, step, report, commit.

Gradients cross ranks inside `backward` (compression's hook), sums of metrics in `parts.agreement`, and
nothing else does. Every decision below is taken from values that all ranks hold alike, so that all of them
take it at the same step.
"""

from __future__ import annotations

import itertools
import math
import time
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eagleray import device, groups
from eagleray.data import Shard
from eagleray.data.digests import LANES, digest
from eagleray.training.agreement import Seen, Vote
from eagleray.training.evaluate import evaluate
from eagleray.training.optimizers import learning_rate, set_learning_rate
from eagleray.training.parts import Parts
from eagleray.training.progress import Progress
from eagleray.training.station import DATA, EVALUATE, UPDATE
from eagleray.training.stepping import Buffers, skip_note, take_step
from eagleray.training.telemetry import Sink

if TYPE_CHECKING:
    from eagleray.training.life import Life

LOG_EVERY_STEPS = 20
STEPS_OF_A_VOTE, SHORT_STEP_S = 4, 0.01
"""A vote wakes threads of gloo's, which costs half a millisecond on busy cores: short steps share one."""
DIGEST = 1 + LANES


def train(parts: Parts, life: Life) -> None:
    """Train from `life.progress` to the end of the run; afterwards it says where that was.

    The parts' module, optimizer and scaler hold the trained state afterwards. A checkpoint is committed every
    `checkpoint.every_steps` steps and at the end, on all ranks at the same step.

    Raises:
        Yielded: all ranks stopped after the same step, since the driver asked for it.
        TrainingError: too many gradients in a row were not finite; names the step and the parameter.
        PeerLost: another rank stopped answering; the state is that after the step of `life.progress`.
    """
    meter, buffers = Meter(parts), Buffers(parts.module)
    if life.settled_step < life.progress.step:  # a loss cut off what follows a step
        settle(parts, life, meter)
    if is_over(parts, life.progress):
        return
    num_steps, step_s = 1, math.inf
    with closing(parts.loader.iterate(life.progress.consumed, parts.rank, parts.world_size)) as shards:
        while True:
            began = time.perf_counter()
            life.station.at(life.progress.step, DATA)
            window = list(itertools.islice(shards, num_steps))
            digests = [digest(shard.epoch, shard.positions, shard.weights).tolist() for shard in window]
            vote = parts.agreement.vote(
                stop=life.station.wanted > 0,
                num_next=STEPS_OF_A_VOTE if step_s < SHORT_STEP_S else 1,
                consumed=list(itertools.chain.from_iterable(digests)),
            )
            for index, shard in enumerate(window):
                seen = take(parts, life, shard, vote, index, meter=meter, buffers=buffers)
                num_steps = seen.num_next
                settle(parts, life, meter)
                if is_over(parts, life.progress):
                    meter.report(life.sink, life.progress)  # stopped early
                    return
                if seen.is_asked_to_stop:
                    meter.report(life.sink, life.progress)  # the next formation has a meter of its own
                    life.yield_to_driver()
            step_s = (time.perf_counter() - began) / len(window)


def take(
    parts: Parts, life: Life, shard: Shard, vote: Vote, index: int, *, meter: Meter, buffers: Buffers
) -> Seen:
    """One step: from here on all of it or nothing of it counts.

    Args:
        parts: of this rank.
        life: is a step further afterwards.
        shard: this rank's samples.
        vote: comes in before the step takes effect.
        index: of the step among those of the vote.
        meter: counts the step.
        buffers: of the module, to put back.

    Returns what the ranks said.
    """
    step, station = life.progress.step + 1, life.station
    lr = learning_rate(parts.spec.optimizer.lr, parts.spec.schedule, step, parts.total_steps)
    set_learning_rate(parts.optimizer, lr)
    seed_dropout(parts, step)
    buffers.keep()
    try:
        life.is_even = False  # from the step's first bucket on each rank owes what the others do not
        station.begin_step(step)
        with groups.telling_losses():
            loss_sums = backward(parts, shard)
        station.at(step, "wait for the step's vote", is_waiting=True)
        seen = vote.result()
        station.at(step, UPDATE)
        life.committer.await_copies()  # of what the update is about to change
    except BaseException:
        buffers.restore()
        parts.optimizer.zero_grad(set_to_none=True)
        raise
    life.skipped = take_step(parts, step, life.skipped)
    if life.skipped:
        buffers.restore()
        if not parts.scaler.is_enabled():  # which looks for its scale in this way
            life.sink.put("note", text=skip_note(parts, step, life.skipped))
    parts.optimizer.zero_grad(set_to_none=True)
    life.took(shard, seen.consumed[index * DIGEST : (index + 1) * DIGEST])
    life.sink.at(step)
    meter.add(loss_sums, shard, lr, is_skipped=life.skipped > 0)
    return seen


def settle(parts: Parts, life: Life, meter: Meter) -> None:
    """What follows a step: report, evaluation, checkpoint; where a loss cuts it off, nothing was judged."""
    before = life.progress
    try:
        _settle(parts, life, meter)
    except BaseException:
        life.progress = before  # in the next formation all ranks evaluate, and judge, once more
        raise
    life.settled_step = life.progress.step


def _settle(parts: Parts, life: Life, meter: Meter) -> None:
    spec, step, sink = parts.spec, life.progress.step, life.sink
    life.committer.poll()
    is_last = step == parts.total_steps
    if step % LOG_EVERY_STEPS == 0 or is_last or meter.is_first:
        meter.report(sink, life.progress)
    is_evaluated = is_evaluation_due(parts, life.progress) or is_last
    if is_evaluated:
        life.station.at(step, EVALUATE)
        life.progress = evaluate_and_judge(parts, life.progress, sink)
    is_due = step % spec.checkpoint.every_steps == 0 or (is_evaluated and spec.checkpoint.at_evaluations)
    if is_due or is_over(parts, life.progress):
        sink.put("buckets", step=step, buckets=describe_buckets(parts))
        life.commit()


def is_over(parts: Parts, progress: Progress) -> bool:
    """Whether no further step is to be taken."""
    return progress.step >= parts.total_steps or progress.is_stopped_early


def backward(parts: Parts, shard: Shard) -> list[Tensor]:
    """Add the gradient of the global batch's mean loss to every parameter.

    Returns this rank's loss sums, one per micro-batch, on the device: reading them would wait for it.

    A rank's loss is its samples' sum over the global batch size, times the world size, because DDP's hook
    returns the mean over ranks: uneven shards and micro-batches then weigh each sample alike.
    """
    spec, scale = parts.spec, parts.world_size / shard.global_size
    if parts.scaler.is_enabled():
        parts.hook.set_loss_scale(parts.scaler.get_scale())
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


def describe_buckets(parts: Parts) -> list[dict[str, Any]]:
    """What this rank's engine has done with each of DDP's buckets."""
    return [
        {
            "first_parameter": names[0],
            "num_parameters": len(names),
            "relative_error": stats.relative_error,
            "ratio": stats.ratio,
            "num_exchanges": stats.num_buckets,
            "sent_bytes": stats.sent_bytes,
            "payload_bytes": stats.payload_bytes,
            "uncompressed_bytes": stats.uncompressed_bytes,
            "codec_seconds": stats.encode_s + stats.decode_s,
            "exchange_seconds": stats.exchange_s,
        }
        for names, stats in parts.hook.bucket_stats().items()
    ]


def evaluate_and_judge(parts: Parts, progress: Progress, sink: Sink) -> Progress:
    """Measure the validation part, if there is one, and let early stopping judge it."""
    if parts.dataset.validation is None:
        return progress
    began = time.perf_counter()
    metrics = {
        f"validation_{name}": value for name, value in evaluate(parts, parts.dataset.validation).items()
    }
    seconds = time.perf_counter() - began
    sink.put("evaluation", step=progress.step, part="validation", seconds=seconds, **metrics)
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
        self._chosen: tuple[str, int] | None = None
        self.is_first = True
        """Nothing was reported yet."""
        self._lr = 0.0
        self._reset()

    def _reset(self) -> None:
        self._since = time.perf_counter()
        self._num_steps = self._num_skipped = 0
        self._loss_sums: list[Tensor] = []
        self._num_samples = self._num_trained = 0
        self._stats = self._parts.hook.stats()

    def add(self, loss_sums: list[Tensor], shard: Shard, lr: float, *, is_skipped: bool) -> None:
        """Count one step: this rank's loss sums, and the global batch, which a skipped step uses up too."""
        self._lr = lr
        self._num_samples += shard.global_size
        self._num_steps += 1
        if is_skipped:
            self._num_skipped += 1
        else:
            self._loss_sums += loss_sums
            self._num_trained += shard.global_size

    def report(self, sink: Sink, progress: Progress) -> None:
        """Sum over the ranks, put a `step` record if there was a step, and start again."""
        if not self._num_steps:
            return
        self.is_first = False
        stats, before, n = self._parts.hook.stats(), self._stats, self._parts.world_size
        sums = self._parts.agreement.sum(
            {
                "loss": float(torch.stack(self._loss_sums).double().sum()) if self._loss_sums else 0.0,
                "sent_bytes": stats.sent_bytes - before.sent_bytes,
                "payload_bytes": stats.payload_bytes - before.payload_bytes,
                "uncompressed_bytes": stats.uncompressed_bytes - before.uncompressed_bytes,
                "probe_bytes": stats.probe_bytes - before.probe_bytes,
                "codec_s": stats.encode_s + stats.decode_s - before.encode_s - before.decode_s,
                "exchange_s": stats.exchange_s - before.exchange_s,
                "relative_error": stats.relative_error or 0.0,  # None: nothing is kept, so nothing waits
            }
        )
        loss = {"loss": sums["loss"] / self._num_trained} if self._num_trained else {}
        sink.put(
            "step",
            step=progress.step,
            epoch=progress.epoch,
            consumed=progress.consumed,
            total_steps=self._parts.total_steps,
            **loss,
            learning_rate=self._lr,
            num_steps=self._num_steps,
            num_samples=self._num_samples,
            skipped_steps=self._num_skipped,
            seconds=time.perf_counter() - self._since,
            sent_bytes=sums["sent_bytes"],
            payload_bytes=sums["payload_bytes"],
            uncompressed_bytes=sums["uncompressed_bytes"],
            probe_bytes=sums["probe_bytes"],
            codec_seconds=sums["codec_s"] / n,
            exchange_seconds=sums["exchange_s"] / n,
            relative_error=sums["relative_error"] / n,
        )
        self._tell_choice(sink, progress)
        self._reset()

    def _tell_choice(self, sink: Sink, progress: Progress) -> None:
        """Put a `compression` record where `auto` has chosen since the last report."""
        choice = self._parts.hook.choice()
        if choice is None or not choice.is_settled or self._chosen == (choice.kind, choice.step):
            return
        self._chosen = (choice.kind, choice.step)
        sink.put(
            "compression",
            step=progress.step,
            compressor=choice.kind,
            reason=choice.reason,
            predicted_s=dict(choice.predicted_s),
            measured_s=dict(choice.measured_s),
        )
