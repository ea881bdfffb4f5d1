"""A run's state to and from a checkpoint: weights, optimizer, data cursor, samples, compression, scaler.

No random state is saved: the order of samples, augmentation and dropout are pure functions of the seed and
the position (`data`'s order, `loop.seed_dropout`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eagleray.errors import CheckpointError
from eagleray.packaging import Checkpoint, CheckpointStore, flatten, unflatten
from eagleray.training.parts import Parts, has_local_buffers
from eagleray.training.progress import Progress
from eagleray.training.samples import Samples
from eagleray.training.snapshot import Committer, Groups, Later

_NAMED = 3


def commit(parts: Parts, progress: Progress, committer: Committer, samples: Samples) -> None:
    """Begin to commit the state; all ranks must call it at the same step, rank 0's `committer` writes.

    Buffers (BatchNorm statistics, for instance) are averaged over the ranks first, in place on all of them,
    so that the committed state is the state everybody goes on with. Weights and optimizer must not change
    before `Committer.await_copies` has returned; forward and backward passes change neither. The commit
    before is over when this returns, and on all ranks `samples` has forgotten what that one holds. With
    `checkpoint.at_evaluations` this commit is over too: who asks for it (a search) decides by what lies in
    the storage.

    Raises:
        PeerLost: another rank stopped answering; nothing of this commit is written.
        TakenOver: a newer attempt of the run has begun to commit.
    """
    settle(parts, committer.wait(), samples)
    began = time.perf_counter()
    if has_local_buffers(parts):
        parts.agreement.average_buffers(parts.module)
    before = parts.hook.stats().state_bytes
    collected = parts.hook.collect_state()
    sent = parts.agreement.sum({"state_bytes": parts.hook.stats().state_bytes - before})
    if parts.rank != 0:
        return
    at_once, later = _divide(parts, collected)
    committer.commit(
        progress.step,
        at_once,
        state={
            "progress": progress.to_json(),
            "samples": samples.state(),
            "dataset_digest": parts.dataset.digest,
            "world_size": parts.world_size,
            "scaler": parts.scaler.state_dict(),
        },
        later=later,
        segment=samples.segment(committer.attempt, progress.step),
        began=began,
        facts=sent,
    )
    if _is_of_users(parts.spec.compression.kind):
        committer.await_copies()
    if parts.spec.checkpoint.at_evaluations:
        committer.wait()


def _divide(parts: Parts, collected: Any) -> tuple[Groups, Later]:
    """What has to be copied at once, and what stays as it is until the update.

    Only an update changes the optimizer's state, and the parameters of our models. A user's model may clip
    its weights in its forward pass, or have an average of them follow.

    Args:
        parts: of this rank.
        collected: compression's state; copies already.
    """
    weights = parts.module.state_dict(keep_vars=True)
    optimizer = parts.optimizer.state_dict()  # with copies of the groups, whose learning rate changes earlier
    at_once, steady = {}, {}
    if parts.spec.model.kind == "module":
        at_once["weights"] = weights
    else:  # buffers change in forward passes
        steady["weights"] = {
            name: one if isinstance(one, nn.Parameter) else one.clone() for name, one in weights.items()
        }

    def later() -> tuple[Groups, dict[str, Any]]:
        optimizer_tensors, optimizer_tree = flatten(optimizer)
        compression_tensors, compression_tree = flatten(collected)
        tensors = {**steady, "optimizer": optimizer_tensors, "compression": compression_tensors}
        return tensors, {"optimizer": optimizer_tree, "compression": compression_tree}

    return at_once, later


def _is_of_users(compression: str) -> bool:
    """Whether it is a compressor of the user's own, which may be given the optimizer and change that."""
    return ":" in compression


def settle(parts: Parts, newest: Checkpoint | None, samples: Samples) -> None:
    """Let every rank know which checkpoint rank 0 has written last; all must call it. Raises: PeerLost."""
    attempt, step = (0, 0) if parts.rank != 0 or newest is None else (newest.attempt, newest.step)
    said = parts.agreement.sum({"attempt": attempt, "step": step})
    if said["attempt"] > 0:
        samples.settle(int(said["attempt"]), int(said["step"]))


def restore(parts: Parts, store: CheckpointStore, samples: Samples, say: Callable[[str], None]) -> Progress:
    """Load the newest checkpoint that verifies into `parts`; returns its position, or the start.

    Args:
        parts: this rank's parts; module, optimizer, scaler and hook hold the checkpoint's state afterwards.
        store: the run's checkpoints.
        samples: goes on from the checkpoint afterwards.
        say: takes one sentence for each damaged checkpoint, and for what of the compression does not fit.

    Raises:
        CheckpointError: it was made from other data, or is of another model.
        InputError: its compression is of another model.
    """
    checkpoint = store.newest(say)
    if checkpoint is None:
        samples.restart(None)
        return Progress()
    _require_same_data(parts, checkpoint)
    state, weights = checkpoint.state, checkpoint.tensors("weights")
    _require_same_model(parts, checkpoint, weights)
    parts.module.load_state_dict(weights)
    parts.optimizer.load_state_dict(unflatten(checkpoint.tensors("optimizer"), state["optimizer"]))
    for note in parts.hook.load_state_dict(
        unflatten(checkpoint.tensors("compression"), state["compression"])
    ):
        say(note)
    if parts.scaler.is_enabled():
        parts.scaler.load_state_dict(state["scaler"])
    samples.restart(checkpoint)
    return Progress.from_json(state["progress"])


def _require_same_data(parts: Parts, checkpoint: Checkpoint) -> None:
    found = checkpoint.state["dataset_digest"]
    if found != parts.dataset.digest:
        raise CheckpointError(
            f"checkpoint of step {checkpoint.step} in {checkpoint.url} was trained on a dataset with digest "
            f"{found[:12]}, but the spec's dataset now has {parts.dataset.digest[:12]}; "
            "put the data back, or start a new run with training.init_from"
        )


def _require_same_model(parts: Parts, checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> None:
    saved = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    model = {name: tuple(tensor.shape) for name, tensor in parts.module.state_dict().items()}
    differing = [name for name in (saved | model) if saved.get(name) != model.get(name)]
    if not differing:
        return
    listed = "; ".join(
        f"{name} has {saved.get(name, 'no place')} in it and {model.get(name, 'no place')} in the model"
        for name in differing[:_NAMED]
    )
    more = f"; {len(differing) - _NAMED} more differ" if len(differing) > _NAMED else ""
    raise CheckpointError(
        f"checkpoint of step {checkpoint.step} in {checkpoint.url} is of another model: {listed}{more}; put "
        "the model's code back as it was, or start a new run with training.init_from"
    )


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 of the weights' bytes in the order of their names: the same on all ranks, if all is well."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
