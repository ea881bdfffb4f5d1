"""Ray Train's backend hook: the default process group of a run, made by `groups`.

In place of Ray's `TorchConfig`, whose store listens on all interfaces, whose GPU default assumes CUDA, and
whose class would have every worker import all of `ray.train.torch` before it starts (1 s of CPU each).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.exceptions import WorkerGroupError

from eagleray.errors import PeerLost


@dataclass
class GroupConfig(BackendConfig):
    """Which process group the workers form before the train function starts."""

    timeout_s: float = 600.0
    backend: str = "gloo"
    """Of the default group; TorchTrainer looks for it."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The class that does it."""
        return GroupBackend


class GroupBackend(Backend):
    """Forms the default group over gloo; the groups for gradients and votes are made from it by the ranks."""

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Rank 0 names an address that it listens on, and everybody joins there.

        Raises: WorkerGroupError: they did not meet, for one was lost, say; as a loss in a later step is.
        """
        assert isinstance(backend_config, GroupConfig)
        address = worker_group.execute_single(0, choose_address)
        world_size = len(worker_group)
        joining = [
            worker_group.execute_single_async(rank, join, address, rank, world_size, backend_config.timeout_s)
            for rank in range(world_size)
        ]
        try:
            ray.get(joining)  # raises as soon as one has failed; the others may wait for it for long
        except (PeerLost, RayActorError) as error:
            raise WorkerGroupError(str(error), _failures(joining)) from error


def _failures(joining: list[Any]) -> dict[int, Exception]:
    """By rank: why it could not join, of those that are known to have failed."""
    found: dict[int, Exception] = {}
    done, _ = ray.wait(joining, num_returns=len(joining), timeout=0)
    for rank, reference in enumerate(joining):
        try:
            if reference in done:
                ray.get(reference)
        except PeerLost as error:
            found[rank] = PeerLost(*error.args)  # without Ray's traceback
        except RayActorError as error:
            found[rank] = error
    return found


def choose_address() -> str:
    """`ip:port` on the interface that this node's Ray address belongs to; the port is free now."""
    import socket

    ip = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return f"{ip}:{probe.getsockname()[1]}"


def join(address: str, rank: int, world_size: int, timeout_s: float) -> None:
    """Form the default group in this process."""
    from eagleray import groups

    groups.form(address=address, rank=rank, world_size=world_size, backend="gloo", timeout_s=timeout_s)
