"""Nodes and worker processes of a run, asked for before the driver has imported torch or ray.train.

The autoscaler starts nodes, and the workers import what they need, while the driver does the same. A
`WorkerActor` is Ray Train's own worker whose class is looked up inside its process: the driver needs no
import of ray.train to create one.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

WORKER_SETTINGS = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # a user's print would come out twice
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
}


class WorkerActor:
    """Ray Train's `RayTrainWorker`, with everything that a rank imports imported at construction."""

    def __init__(self) -> None:
        os.environ.update(WORKER_SETTINGS)  # read when ray.train is imported
        importlib.import_module("eagleray.training.worker_imports")
        from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

        self._worker = RayTrainWorker()

    def execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run `fn` in the worker's main thread."""
        return self._worker.execute(fn, *args, **kwargs)

    def run_train_fn(self, train_fn_ref: Any) -> None:
        """Start the train function in a thread."""
        return self._worker.run_train_fn(train_fn_ref)

    def get_metadata(self) -> Any:
        """Host, node and process id."""
        return self._worker.get_metadata()

    def mark_preempt(self, info: Any) -> None:
        """Take a preemption notice."""
        return self._worker.mark_preempt(info)

    def poll_status(self) -> Any:
        """Whether the train function runs, failed, or reported."""
        return self._worker.poll_status()

    def clear_result_queue(self) -> bool:
        """Drop pending reports."""
        return self._worker.clear_result_queue()

    def shutdown(self) -> None:
        """Run the shutdown hooks."""
        return self._worker.shutdown()

    def init_train_context(self, **context: Any) -> None:
        """Take rank, world size and storage of this attempt."""
        self._worker.init_train_context(**context)
        _quiet()


def _quiet() -> None:
    """Keep two of Ray Train's loggers out of the job's log; they are in no hierarchy that could be set.

    One says a line per rank and checkpoint; the other a traceback for each error, which our driver says in
    one line, or shows by itself where the error is not ours.
    """
    from ray.train.v2._internal import util
    from ray.train.v2._internal.execution import context

    context.logger.setLevel(logging.WARNING)
    util.logger.setLevel(logging.CRITICAL)


def create_actors(group: PlacementGroup, bundle: Mapping[str, float], count: int) -> list[Any]:
    """One worker actor per bundle of `group`; they start as soon as the group is placed."""
    resources = dict(bundle)
    actor_class = ray.remote(
        num_cpus=resources.pop("CPU", 0), num_gpus=resources.pop("GPU", 0), resources=resources
    )(WorkerActor)
    return [
        actor_class.options(
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        ).remote()
        for index in range(count)
    ]


class Reservation:
    """A placement group of one bundle per worker, and the worker actors in it, made as soon as it is placed.

    (Actors made earlier would have Ray warn every second that no node type offers the group's resources.)
    """

    def __init__(self, bundle: Mapping[str, float], count: int, label_selector: Mapping[str, str]):
        self.bundle, self.count = dict(bundle), count
        selectors: Any = [dict(label_selector)] * count if label_selector else None
        self.group = placement_group(
            [self.bundle] * count, strategy="SPREAD", bundle_label_selector=selectors
        )
        self.actors: list[Any] = []
        self.placed_at: float | None = None
        self._is_released = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._seat, daemon=True)
        self._thread.start()

    def _seat(self) -> None:
        try:
            while not self.group.wait(1):
                if self._is_released:
                    return
            self.actors = create_actors(self.group, self.bundle, self.count)
            self.placed_at = time.time()
        except Exception as error:  # told by `wait`, in the driver's own thread
            self._failure = error

    def wait(self, say: Callable[[str], None], *, every_s: float = 5.0) -> float:
        """Block until the workers are being made; returns the time at which their nodes were there.

        `say` hears of the waiting.
        """
        started = time.monotonic()
        self._thread.join(every_s)
        while self._thread.is_alive():
            waited = time.monotonic() - started
            say(f"waiting for {self.count} x ({describe(self.bundle)}): {waited:.0f} s; nodes are starting")
            self._thread.join(every_s)
        if self._failure is not None:
            raise self._failure
        assert self.placed_at is not None
        return self.placed_at

    def take_actors(self) -> list[Any]:
        """The workers made ahead of time, at the first call; new ones on the same seats afterwards."""
        actors, self.actors = self.actors, []
        return actors or create_actors(self.group, self.bundle, self.count)

    def release(self) -> None:
        """Give the resources back."""
        self._is_released = True
        remove_placement_group(self.group)


def describe(bundle: Mapping[str, float]) -> str:
    """For instance "1 CPU + 1 GPU"."""
    return " + ".join(f"{amount:g} {name}" for name, amount in sorted(bundle.items()))
