"""`fit`: one run on the cluster, from reservation to outcome."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from eagleray.errors import EaglerayError, TrainingError
from eagleray.packaging import Folder
from eagleray.specs import TrainSpec
from eagleray.training.observer import START, Observer
from eagleray.training.reservation_ray260 import Reservation
from eagleray.training.stopping import Suspended


def bundle(spec: TrainSpec) -> dict[str, float]:
    """What one worker holds while the run lasts."""
    resources = {"CPU": spec.scaling.cpus_per_worker, "GPU": float(spec.scaling.gpus_per_worker)}
    return {name: amount for name, amount in resources.items() if amount > 0}


class Size:
    """How many workers a run is asked to have; from any thread, before and while it trains."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: int | None = None
        self._resize: Callable[[int], None] | None = None

    def want(self, count: int) -> None:
        """Ask for so many; no fewer than the spec's minimum are left."""
        with self._lock:
            self._wanted = count
            if self._resize is not None:
                self._resize(count)

    def bind(self, resize: Callable[[int], None]) -> None:
        """Say who brings it about."""
        with self._lock:
            self._resize = resize
            if self._wanted is not None:
                resize(self._wanted)


def fit(
    spec: TrainSpec,
    run_url: str,
    *,
    first_attempt: int,
    reservation: Reservation,
    observer: Observer,
    size: Size | None = None,
) -> dict[str, Any]:
    """Train to the end on the reservation's workers; returns rank 0's outcome (`worker.run`).

    Args:
        spec: the run.
        run_url: its folder in storage, "<storage>/runs/<run id>".
        first_attempt: the number of the first start of the workers.
        reservation: the run's seats, and the workers of the first start.
        observer: hears what happens.
        size: how many workers are wanted, from now on.

    Where others need what the run holds (`Reservation.allot`), it ends early: `is_suspended` is true in what
    is returned, beside the values of `stopping.Suspended`. All that the ranks had trained is in the newest
    checkpoint then, if it was not forced and the storage took it.

    Raises:
        EaglerayError: the run failed for good; the first cause, in words.
    """
    from eagleray.training import trainer_ray260

    for name, value in trainer_ray260.SETTINGS.items():
        os.environ.setdefault(name, value)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    from eagleray.training.backend_ray260 import GroupConfig
    from eagleray.training.retrying_ray260 import failures
    from eagleray.training.worker import train_worker

    parent, _, run_id = run_url.rstrip("/").rpartition("/")
    # Ray's own list of an earlier driver's checkpoints, some of them pruned since: ours is the one truth.
    run = Folder(run_url)
    run.remove("checkpoint_manager_snapshot.json")
    trainer = trainer_ray260.Trainer(
        train_worker,
        train_loop_config={"spec": spec.model_dump(mode="json"), "run_url": run_url},
        torch_config=GroupConfig(),
        scaling_config=ScalingConfig(
            num_workers=spec.scaling.num_workers,
            use_gpu=spec.scaling.gpus_per_worker > 0,
            resources_per_worker=bundle(spec),
            placement_strategy="SPREAD",
            label_selector=dict(spec.scaling.label_selector) or None,
        ),
        run_config=RunConfig(
            name=run_id,
            storage_path=parent,
            failure_config=FailureConfig(max_failures=spec.scaling.max_failures),
        ),
        spec=spec,
        run=run,
        observer=observer,
        first_attempt=first_attempt,
        reservation=reservation,
    )
    if size is not None:
        size.bind(trainer.membership.resize)
    try:
        outcome = trainer.fit().return_value
        assert outcome is not None
        return outcome
    except TrainingFailedError as error:
        for failure in failures(error).values():
            if isinstance(failure, Suspended):
                return {"is_suspended": True, **vars(failure)}
        raise in_words(error) from error


def in_words(error: Exception) -> EaglerayError:
    """The first cause of a failed run: ours as it is, another's with its type and text."""
    from eagleray.training.retrying_ray260 import failures, root_failure

    rank, failure = root_failure(failures(error))  # type: ignore[arg-type]
    if isinstance(failure, EaglerayError):
        return failure
    who = "the run" if rank == START else f"rank {rank}"
    return TrainingError(f"{who} failed: {type(failure).__name__}: {failure}")
