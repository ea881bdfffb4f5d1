"""What each rank of a Ray Train run does: build the parts, go on from the newest checkpoint, train."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eagleray.errors import EaglerayError
from eagleray.specs import TrainSpec
from eagleray.training.telemetry import BUFFER, Sink

if TYPE_CHECKING:
    from eagleray.training.parts import Parts
    from eagleray.training.progress import Progress

GROUP_TIMEOUT_S = 600.0
"""Backstop only: a rank that died is found by its closed sockets and by the driver."""


@dataclass(frozen=True)
class Attempt:
    """One start of the workers of a run."""

    number: int
    """1 for the first start ever of the run; checkpoints of a lower one are refused."""
    spec: TrainSpec
    run_url: str
    """The run's folder in storage."""


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train to the end; called by Ray Train on every rank, in a thread of the worker's process.

    Args:
        config: `spec` (its JSON) and `run_url`. The number of the attempt comes from the process's
            environment, where the driver puts it at each start.

    Returns:
        What the driver wants to know of the end: position, number of parameters, test metrics, completion.
    """
    import ray.train

    spec = TrainSpec.model_validate(config["spec"])
    attempt = Attempt(int(os.environ["EAGLERAY_ATTEMPT"]), spec, config["run_url"])
    context = ray.train.get_context()

    def report_pointer(step: int, url: str | None) -> None:
        from ray.train import Checkpoint, CheckpointUploadMode

        pointer = None if url is None else Checkpoint(url)
        ray.train.report(
            {"step": step}, checkpoint=pointer, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD
        )

    try:
        return run(attempt, rank=context.get_world_rank(), sink=BUFFER, report_pointer=report_pointer)
    except EaglerayError:
        raise
    except Exception as error:
        error.add_note(traceback.format_exc())  # Ray hands the exception to the driver without it
        raise


def run(
    attempt: Attempt, *, rank: int, sink: Sink, report_pointer: Callable[[int, str | None], None]
) -> dict[str, Any]:
    """Train to the end over the default process group, which the caller has made.

    `report_pointer(step, url)` is called on all ranks after the last commit; `url` is None but on rank 0.
    """
    from eagleray.packaging import CheckpointStore, Folder
    from eagleray.packaging.journal import Journal
    from eagleray.training import loop, state
    from eagleray.training.code import import_code
    from eagleray.training.samples import Samples
    from eagleray.training.snapshot import Committer

    import_code(Folder(attempt.run_url))
    store = CheckpointStore(f"{attempt.run_url}/checkpoints")

    def say(text: str) -> None:
        if rank == 0:
            sink.put("note", text=text)

    rule, samples = attempt.spec.checkpoint, Samples()
    committer = Committer(store, Journal(attempt.run_url), attempt.number, sink, rule.keep)

    def commit(progress: Progress) -> None:
        state.commit(parts, progress, committer, samples)
        if rule.at_evaluations:  # whoever asked for it (a search) goes by what is in the storage
            committer.wait()

    parts = assemble(attempt.spec, rank, say)
    try:
        parts.agreement.same("the dataset's digest", parts.dataset.digest)
        progress = state.restore(parts, store, samples, say)
        parts.agreement.same("the step to go on from", progress.step)
        sink.put("phase", name="training", step=progress.step, attempt=attempt.number)
        progress = loop.train(parts, progress, sink, commit)
        checkpoint = committer.flush_final()
        report_pointer(progress.step, None if checkpoint is None or rank != 0 else checkpoint.url)
        return outcome(parts, progress)
    finally:
        committer.close()
        parts.close()


def assemble(spec: TrainSpec, rank: int, say: Callable[[str], None]) -> Parts:
    """This rank's parts on process groups of their own; says what a user would wonder about."""
    import torch

    from eagleray import device, groups
    from eagleray.training.agreement import Agreement
    from eagleray.training.parts import build, has_local_batch_norm
    from eagleray.training.placing import agree_on_place

    torch.set_num_threads(max(1, int(spec.scaling.cpus_per_worker)))
    votes = groups.new_group("votes", backend="gloo", timeout_s=GROUP_TIMEOUT_S)
    picked = device.pick(spec.scaling.gpus_per_worker)
    place = agree_on_place(picked, Agreement(votes), rank, votes.world_size)
    gradients = groups.new_group("gradients", backend=place.backend, timeout_s=GROUP_TIMEOUT_S)
    parts = build(spec, gradients=gradients, votes=votes, place=place)
    if place.is_logical_gpu:
        say("no CUDA device for each worker: GPUs are logical ones and the maths runs on the CPU")
    if has_local_batch_norm(parts):
        say("BatchNorm on the CPU: statistics stay per rank between commits, where they are averaged")
    return parts


def outcome(parts: Parts, progress: Progress) -> dict[str, Any]:
    """What the driver wants to know of the end; all ranks must call it.

    Raises: TrainingError where the ranks do not hold the same weights.
    """
    from eagleray.training import state
    from eagleray.training.evaluate import count_parameters, evaluate

    found: dict[str, Any] = {
        "progress": progress.to_json(),
        "total_steps": parts.total_steps,
        "num_parameters": count_parameters(parts.module),
        "dataset_digest": parts.dataset.digest,
        "signature": parts.dataset.signature.model_dump(mode="json"),
        "weights_digest": state.weights_digest(parts.module),
    }
    parts.agreement.same("weights at the end", found["weights_digest"])
    if parts.dataset.test is not None:
        found["test"] = evaluate(parts, parts.dataset.test)
    if parts.spec.completion is not None and parts.rank == 0:
        found["completion"] = complete(parts)
    return found


def complete(parts: Parts) -> str:
    """The spec's prompt and what the model makes of it."""
    import torch

    from eagleray import models
    from eagleray.data import ByteTokenizer

    completion, tokenizer = parts.spec.completion, ByteTokenizer()
    assert completion is not None
    sampler = models.Sampler(
        completion.temperature,
        generator=torch.Generator().manual_seed(parts.spec.seed),
        num_choices=tokenizer.padding_token,
    )
    parts.module.eval()
    produced = models.complete(
        parts.module,
        tokenizer.encode(completion.prompt).tolist(),
        num_tokens=completion.num_tokens,
        sampler=sampler,
        context=parts.dataset.signature.input_shape[0],
    )
    return completion.prompt + tokenizer.decode(list(produced))
