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
from ray.exceptions import RayActorError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from eagleray.errors import TrainingError

WORKER_SETTINGS = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # a user's print would come out twice
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
}

MAX_DEATHS_AT_START = 5
"""In a row, of workers whose node goes on living (killed for memory, say): then the run ends."""


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


class Seats(PlacementGroup):
    """A run's placement group: what waits for it waits without a limit, and `Reservation` says so.

    Ray Train gives up after 60 s, each time as a failure of the run's controller. But a node that died may
    take longer to come back: a new machine of a cloud, or one that somebody has to start again.
    """

    def __init__(self, group: PlacementGroup, tell: Callable[[float], None]):
        super().__init__(group.id, group.bundle_cache)
        self._tell = tell

    def wait(self, timeout_seconds: float = 0.0) -> bool:
        """True, once every bundle has a node. Ray moves those of a dead node as soon as another has room."""
        started = time.monotonic()
        while not super().wait(1):
            self._tell(time.monotonic() - started)
        return True


class Reservation:
    """A placement group of one bundle per worker, and the worker actors in it, made as soon as it is placed.

    (Actors made earlier would have Ray warn every second that no node type offers the group's resources.)
    """

    def __init__(self, bundle: Mapping[str, float], count: int, label_selector: Mapping[str, str]):
        self.bundle, self.count = dict(bundle), count
        selectors: Any = [dict(label_selector)] * count if label_selector else None
        group = placement_group([self.bundle] * count, strategy="SPREAD", bundle_label_selector=selectors)
        self.group = Seats(group, self._tell)
        self.actors: list[Any] = []
        self._made: list[Any] = []
        self.placed_at: float | None = None
        self._say: Callable[[str], None] = lambda _: None
        self._every_s, self._tell_after_s = 5.0, 5.0
        self._is_released = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._seat, args=(group,), daemon=True)
        self._thread.start()

    def _seat(self, group: PlacementGroup) -> None:
        try:
            while not group.wait(1):
                if self._is_released:
                    return
            self.actors = self._made = create_actors(group, self.bundle, self.count)
            self.placed_at = time.time()
        except Exception as error:  # told by `wait`, in the driver's own thread
            self._failure = error

    def wait(self, say: Callable[[str], None], *, every_s: float = 5.0) -> float:
        """Block until the workers are being made; returns the time at which their nodes were there.

        `say` hears of the waiting, here and after later losses, at intervals that double up to a minute.
        """
        self._say, self._every_s, self._tell_after_s = say, every_s, every_s
        started = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(min(every_s, 1.0))
            self._tell(time.monotonic() - started)
        if self._failure is not None:
            raise self._failure
        assert self.placed_at is not None
        return self.placed_at

    def _tell(self, waited_s: float) -> None:
        """Say that nodes are waited for, if enough time has passed since it was said last."""
        if waited_s < self._tell_after_s:
            return
        self._tell_after_s = waited_s + min(max(waited_s, self._every_s), 60.0)
        self._say(
            f"waiting for {self.count} x ({describe(self.bundle)}): {waited_s:.0f} s; "
            "a node is starting, busy or missing"
        )

    def take_actors(self) -> list[tuple[Any, Any]]:
        """One worker per seat, with what it answers to `get_metadata`.

        At the first call they are those made ahead of time, else new ones.

        If a node dies meanwhile, this waits for another and makes the workers anew. It often does: the other
        ranks hear at once of a host that is gone, Ray only 3 to 20 s later.

        Raises:
            TrainingError: workers ended while they started, several times, and no node was lost; or a worker
                cannot be made: its constructor raised.
        """
        actors, self.actors = self.actors, []
        num_left = MAX_DEATHS_AT_START
        while True:
            present = _live_nodes()
            if not actors:
                self._end_workers()
                actors = self._made = create_actors(self.group, self.bundle, self.count)
            try:
                metadata = ray.get([actor.get_metadata.remote() for actor in actors])
                return list(zip(actors, metadata, strict=True))
            except RayActorError as error:
                self._end_workers()
                if error.actor_init_failed:
                    raise TrainingError(f"a worker cannot start: {last_line(error)}") from error
                is_node_lost = not present <= _live_nodes()
                num_left -= not is_node_lost
                if num_left == 0:
                    raise TrainingError(
                        f"workers ended while they started, {MAX_DEATHS_AT_START} times: {last_line(error)}"
                    ) from error
                what = "its node was lost" if is_node_lost else "its process ended"
                self._say(f"a worker was lost while it started ({what}); starting the workers again")
            actors = []
            self._tell_after_s = self._every_s
            self.group.wait()

    def release(self) -> None:
        """End the workers that are left, and give the resources back."""
        self._is_released = True
        # A worker that still imports when its group is removed ends in a page of C++ frames (Ray 2.60).
        self._end_workers()
        remove_placement_group(self.group)

    def _end_workers(self) -> None:
        """End those that were made last: Ray forgets a worker group whose start failed, and ends nobody."""
        for actor in self._made:
            ray.kill(actor)
        self._made = []


def _live_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def last_line(error: Exception) -> str:
    """The cause in Ray's long texts; ids and addresses stand before it."""
    return (str(error).strip().splitlines() or ["no message"])[-1].strip()


def describe(bundle: Mapping[str, float]) -> str:
    """For instance "1 CPU + 1 GPU"."""
    return " + ".join(f"{amount:g} {name}" for name, amount in sorted(bundle.items()))
