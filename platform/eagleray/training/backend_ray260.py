"""Ray Train's backend hook: the default process group of a run, made by `groups`.

In place of Ray's `TorchConfig`, whose store listens on all interfaces, whose GPU default assumes CUDA, and
whose class would have every worker import all of `ray.train.torch` before it starts (1 s of CPU each).
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.exceptions import WorkerGroupError

from eagleray.errors import EaglerayError, InputError

SHARED_FOLDER_S = 10.0
"""How long a network file system may take until all hosts see a new folder."""


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

        Raises: WorkerGroupError: a rank was lost, or does not see the run's folder.
        """
        assert isinstance(backend_config, GroupConfig)
        ranks, world_size, timeout_s = range(len(worker_group)), len(worker_group), backend_config.timeout_s
        _all([worker_group.execute_single_async(rank, require_folder, rank) for rank in ranks])
        address = worker_group.execute_single(0, choose_address)
        _all(
            [
                worker_group.execute_single_async(rank, join, address, rank, world_size, timeout_s)
                for rank in ranks
            ]
        )


def _all(references: list[Any]) -> None:
    """Wait for what every rank does.

    Raises: WorkerGroupError: as soon as one failed; the others may wait for it for long.
    """
    try:
        ray.get(references)
    except (EaglerayError, RayActorError) as error:
        raise WorkerGroupError(str(error), _failures(references)) from error


def _failures(references: list[Any]) -> dict[int, Exception]:
    """By rank: why it could not, of those that are known to have failed."""
    found: dict[int, Exception] = {}
    done, _ = ray.wait(references, num_returns=len(references), timeout=0)
    for rank, reference in enumerate(references):
        try:
            if reference in done:
                ray.get(reference)
        except EaglerayError as error:
            found[rank] = getattr(error, "cause", error)  # without Ray's traceback
        except RayActorError as error:
            found[rank] = error
    return found


def choose_address() -> str:
    """`ip:port` on the interface that this node's Ray address belongs to; the port is free now."""
    ip = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return f"{ip}:{probe.getsockname()[1]}"


def join(address: str, rank: int, world_size: int, timeout_s: float) -> None:
    """Form the default group in this process."""
    from eagleray import groups

    groups.form(address=address, rank=rank, world_size=world_size, backend="gloo", timeout_s=timeout_s)


def require_folder(rank: int) -> None:
    """Check that the run's folder, which the driver has made, is there on this host too.

    Otherwise the run would train, and lose all of it: no host finds the checkpoints of another.

    Raises: InputError: it is a folder of some other host.
    """
    import pyarrow.fs

    storage: Any = ray.train.get_context().get_storage()
    path = storage.experiment_fs_path
    if not isinstance(storage.storage_filesystem, pyarrow.fs.LocalFileSystem):
        return
    deadline = time.monotonic() + SHARED_FOLDER_S
    while not os.path.isdir(path):
        if time.monotonic() > deadline:
            raise InputError(
                f"rank {rank} on host {socket.gethostname()} ({ray.util.get_node_ip_address()}) does not see "
                f"the run's folder {path}: EAGLERAY_STORAGE has to be a folder that all hosts share, "
                "or a URL such as s3://bucket/path"
            )
        time.sleep(0.2)
