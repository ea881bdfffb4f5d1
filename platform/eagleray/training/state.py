"""A run's state to and from a checkpoint: weights, optimizer, data cursor, compression, gradient scaler.

No random state is saved: the order of samples, augmentation and dropout are pure functions of the seed and
the position (`data`'s order, `loop.seed_dropout`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import torch

from eagleray.errors import CheckpointError
from eagleray.packaging import Checkpoint, CheckpointStore, flatten, unflatten
from eagleray.training.parts import Parts, has_local_buffers
from eagleray.training.progress import Progress
from eagleray.training.telemetry import Sink


def commit(
    parts: Parts, progress: Progress, store: CheckpointStore, attempt: int, sink: Sink
) -> Checkpoint | None:
    """Commit the state; all ranks must call it at the same step, rank 0 writes and returns the checkpoint.

    Buffers (BatchNorm statistics, for instance) are averaged over the ranks first, in place on all of them,
    so that the committed state is the state everybody goes on with.
    """
    started = time.perf_counter()
    if has_local_buffers(parts):
        parts.agreement.average_buffers(parts.module)
    before = parts.hook.stats().state_bytes
    collected = parts.hook.collect_state()
    sent = parts.agreement.sum({"state_bytes": parts.hook.stats().state_bytes - before})
    if parts.rank != 0:
        return None
    optimizer_tensors, optimizer_tree = flatten(parts.optimizer.state_dict())
    compression_tensors, compression_tree = flatten(collected)
    checkpoint = store.commit(
        progress.step,
        attempt=attempt,
        tensors={
            "weights": parts.module.state_dict(),
            "optimizer": optimizer_tensors,
            "compression": compression_tensors,
        },
        state={
            "progress": progress.to_json(),
            "dataset_digest": parts.dataset.digest,
            "world_size": parts.world_size,
            "optimizer": optimizer_tree,
            "compression": compression_tree,
            "scaler": parts.scaler.state_dict(),
        },
    )
    store.prune(parts.spec.checkpoint.keep)
    sink.put("commit", step=progress.step, seconds=time.perf_counter() - started, **sent)
    return checkpoint


def restore(parts: Parts, store: CheckpointStore, say: Callable[[str], None]) -> Progress:
    """Load the newest checkpoint that verifies into `parts`; returns its position, or the start.

    Args:
        parts: this rank's parts; module, optimizer, scaler and hook hold the checkpoint's state afterwards.
        store: the run's checkpoints.
        say: takes one sentence for each damaged checkpoint, and for what of the compression does not fit.

    Raises:
        CheckpointError: it was made from other data.
        InputError: its compression is of another model.
    """
    checkpoint = store.newest(say)
    if checkpoint is None:
        return Progress()
    _require_same_data(parts, checkpoint)
    state = checkpoint.state
    parts.module.load_state_dict(checkpoint.tensors("weights"))
    parts.optimizer.load_state_dict(unflatten(checkpoint.tensors("optimizer"), state["optimizer"]))
    for note in parts.hook.load_state_dict(
        unflatten(checkpoint.tensors("compression"), state["compression"])
    ):
        say(note)
    if parts.scaler.is_enabled():
        parts.scaler.load_state_dict(state["scaler"])
    return Progress.from_json(state["progress"])


def _require_same_data(parts: Parts, checkpoint: Checkpoint) -> None:
    found = checkpoint.state["dataset_digest"]
    if found != parts.dataset.digest:
        raise CheckpointError(
            f"checkpoint of step {checkpoint.step} in {checkpoint.url} was trained on a dataset with digest "
            f"{found[:12]}, but the spec's dataset now has {parts.dataset.digest[:12]}; "
            "put the data back, or start a new run with training.init_from"
        )


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 of the weights' bytes in the order of their names: the same on all ranks, if all is well."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
