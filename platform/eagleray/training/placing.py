"""Where the ranks of a run compute: all of them on a device of their own, or all of them on the CPU."""

from __future__ import annotations

import hashlib
import socket

import torch

from eagleray.device import Place
from eagleray.training.agreement import Agreement

_DIGEST_BITS = 52
"""What a float64, in which the agreement sums, holds exactly."""


def agree_on_place(place: Place, agreement: Agreement, rank: int, world_size: int) -> Place:
    """`place` on every rank if each has a CUDA device that no other has; else the CPU and gloo on every rank.

    Logical GPUs may be more than the real ones: then two ranks see one device, which NCCL refuses, or some
    rank sees none.
    """
    mine = _device_digest(place)
    digests = agreement.sum({str(other): mine if other == rank else 0 for other in range(world_size)})
    devices = [digest for digest in digests.values() if digest]
    if len(set(devices)) == world_size or not devices:
        return place
    return Place(device=torch.device("cpu"), backend="gloo", is_logical_gpu=True)


def _device_digest(place: Place) -> int:
    """A number for the device and its host; 0 for the CPU."""
    if place.device.type != "cuda":
        return 0
    uuid = torch.cuda.get_device_properties(place.device).uuid
    digest = hashlib.sha256(f"{socket.gethostname()}:{uuid}".encode()).digest()
    return int.from_bytes(digest[:8]) >> (64 - _DIGEST_BITS) or 1


def own_address() -> str:
    """`ip:port` on the interface that this node's Ray address belongs to; the port is free now."""
    import ray

    ip = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return f"{ip}:{probe.getsockname()[1]}"
