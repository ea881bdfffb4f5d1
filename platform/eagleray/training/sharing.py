"""A run's state from the memory of one rank to that of others: those that come new, or are a step behind.

And from one to all: what compression keeps alike everywhere, of which a step that broke has changed a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from eagleray.packaging import flatten, unflatten
from eagleray.training.parts import Parts
from eagleray.training.progress import Progress

if TYPE_CHECKING:
    from eagleray.training.life import Life


def pack(parts: Parts, life: Life) -> tuple[dict[str, Tensor], Any]:
    """The state in memory, for ranks that come new or are a step behind (`Agreement.broadcast`)."""
    tree = {
        "weights": dict(parts.module.state_dict()),
        "optimizer": parts.optimizer.state_dict(),
        "compression": parts.hook.own_state(),
        "scaler": parts.scaler.state_dict(),
        "progress": life.progress.to_json(),
        "settled_step": life.settled_step,
        "committed_step": life.committed_step,
        "skipped": life.skipped,
        "samples": life.samples.to_json(),
    }
    return flatten(tree)


def even_common_state(parts: Parts, source: int) -> None:
    """Give all ranks what `source` keeps of what compression must have alike on all; raises PeerLost."""
    own = flatten(parts.hook.common_state()) if parts.rank == source else (None, None)
    theirs = unflatten(*parts.agreement.broadcast(source, *own))
    if parts.rank != source:
        parts.hook.take_common_state(theirs)


def unpack(
    parts: Parts,
    life: Life,
    tensors: Mapping[str, Tensor],
    document: Any,
    *,
    with_memory: bool,
    is_even: bool,
) -> None:
    """Take what `pack` gave on another rank.

    Args:
        parts: hold that state afterwards, and so does
        life: as far as it says where the run is.
        tensors: of `pack`.
        document: of `pack`.
        with_memory: compression's own, too.
        is_even: what compression still owes was the same on all ranks; else it stays theirs.
    """
    tree = unflatten(tensors, document)
    parts.module.load_state_dict(tree["weights"])
    parts.optimizer.load_state_dict(tree["optimizer"])
    if parts.scaler.is_enabled():
        parts.scaler.load_state_dict(tree["scaler"])
    if with_memory:
        if not is_even:  # what others owe is theirs; but all ranks have to have the same slots
            for values in tree["compression"]["mean"].values():
                for tensor in values.values():
                    tensor.zero_()
        parts.hook.load_state_dict(tree["compression"])
    life.progress = Progress.from_json(tree["progress"])
    life.settled_step, life.committed_step = tree["settled_step"], tree["committed_step"]
    life.skipped = tree["skipped"]
    life.samples.load(tree["samples"])
