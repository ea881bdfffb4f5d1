"""Which real GPUs a node of the local cluster gets; on a machine without one, GPUs are logical only."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def real_gpus() -> list[str]:
    """Ids of the NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES writes them."""
    num_devices = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not num_devices or visible is None:
        return [str(index) for index in range(num_devices)]
    return [gpu.strip() for gpu in visible.split(",") if gpu.strip()]


def choose(real: Sequence[str], num_wanted: int, held: Iterable[Sequence[str]]) -> list[str]:
    """The `num_wanted` real GPUs that the fewest other nodes hold; none where there are too few.

    Args:
        real: ids of the machine's GPUs.
        num_wanted: (logical) GPUs of the node.
        held: what each live node holds.
    """
    if num_wanted > len(real):
        return []
    load = Counter(gpu for gpus in held for gpu in gpus)
    return sorted(real, key=lambda gpu: (load[gpu], real.index(gpu)))[:num_wanted]


def environment(real: Sequence[str], chosen: Sequence[str], num_wanted: int) -> Mapping[str, str]:
    """What to set for a node; Ray then sets CUDA_VISIBLE_DEVICES of each worker within it.

    Left alone, the raylets of one machine would all hand out GPU 0.
    """
    if not real or (num_wanted and not chosen):
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(chosen)}
