"""Ray Train's backend hook: what is checked on every rank before it trains.

In place of Ray's `TorchConfig`, whose store listens on all interfaces, whose GPU default assumes CUDA, and
whose class would have every worker import all of `ray.train.torch` before it starts (1 s of CPU each).
Process groups are formed by the ranks (`worker`), again and again, and not by Ray.
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
    """The ranks form their process groups by themselves."""

    backend: str = "gloo"
    """Of the default group; TorchTrainer looks for it."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The class that does it."""
        return GroupBackend


class GroupBackend(Backend):
    """Checks what a rank needs."""

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Check that every rank sees the run's folder; the groups are formed by the ranks themselves.

        Raises: WorkerGroupError: a rank was lost, or does not see the run's folder.
        """
        ranks = range(len(worker_group))
        _all([worker_group.execute_single_async(rank, require_folder, rank) for rank in ranks])


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
