"""Ray Train v2 with its controller in the driver's own process, our workers, and our record of what happened.

Subclasses of Ray 2.60's internals; `tests/unit/training/test_ray260.py` fails loudly when one of them moves.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller import controller as controller_module
from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import PlacementGroupHandle
from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus
from ray.train.v2._internal.execution.worker_group.worker import Worker

from eagleray.cluster import recovery_ray260
from eagleray.errors import EaglerayError, PeerLost
from eagleray.packaging import Folder
from eagleray.specs import TrainSpec
from eagleray.training.attempts import Notes
from eagleray.training.membership_ray260 import Membership
from eagleray.training.observer import Change, Observer
from eagleray.training.reservation_ray260 import Reservation
from eagleray.training.retrying_ray260 import RetryPolicy
from eagleray.training.seat_ray260 import START_LIMIT_S
from eagleray.training.stopping import Suspended
from eagleray.training.telemetry import Record
from eagleray.training.watch_ray260 import Watch

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # 2 s before a dead worker was noticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one actor process more per start
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",  # would re-route the driver's own logging
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a spec's relative paths stay valid
}

UNUSED_CALLBACKS = (
    PlacementGroupCleanerCallback,  # the run's placement groups belong to this job and end with it
    DatasetsCallback,  # no Ray Data here
)
"""Each would start an actor: a process, and 2 s of CPU for its imports, while the workers start."""


class SeatsHandle(PlacementGroupHandle):
    """Ray Train's handle of the run's seats, which end with the reservation, not with a worker group.

    A new placement group for each start would be asked for while the old one's resources are still held: the
    autoscaler then starts nodes that nobody needs, and the run waits for them.
    """

    def __init__(self, reservation: Reservation):
        self._reservation = reservation

    @property
    def placement_group(self) -> Any:
        """Of the first seat; ours needs none, and all may just have been given back."""
        seats = self._reservation.seats
        return seats[0].group if seats else None

    def ready(self) -> Any:
        """See Ray's."""
        return self.placement_group.ready()

    def wait(self, timeout_seconds: float = 30) -> bool:
        """True, once enough seats have a node."""
        self._reservation.await_seats()
        return True

    def shutdown(self) -> None:
        """Nothing: `Reservation.release` does it."""


class SeatedWorkerGroup(WorkerGroup):
    """A worker group on the seats of a reservation, whose members change while it goes on."""

    reservation: Reservation
    membership: Membership

    def _start(self) -> None:
        """As Ray's, but a worker that ends or stops just when it is told to train is a failed start, too.

        Ray 2.60 takes that for a bug of its controller, and the run would end, or waits for ever.
        """
        try:
            super()._start()
        except (RayActorError, GetTimeoutError) as error:
            raise WorkerGroupStartupFailedError("A worker ended before it trained.") from error
        self.membership.begin(self.get_workers(), self._seats, self._launch)

    def _launch(self, worker: Worker) -> None:
        """Start the train function of a worker that comes later."""
        worker.distributed_context = self.get_workers()[0].distributed_context  # until it is in a formation
        self._init_train_context([worker], self.get_worker_group_state().sync_actor)
        started = worker.actor.run_train_fn.remote(self._worker_group_context.train_fn_ref)
        ray.get(started, timeout=START_LIMIT_S)

    def _poll_workers_and_collect_errors(self, timeout: float | None) -> list[WorkerStatus]:
        """As Ray's, of the present members; the death of one is the membership's business."""
        with self.membership.lock:
            workers = [member.worker for member in self.membership.members]
            failure = self.membership.failure
        if not workers:
            failure = failure or PeerLost("all workers were lost")
            others = len(self.get_workers()) - 1  # Ray's report handler wants a status of each
            return [WorkerStatus(running=False, error=failure), *[WorkerStatus(running=True)] * others]
        if workers != self.get_workers():
            self._world_rank_to_ongoing_poll.clear()
            self._assign_worker_ranks(workers)
            self._worker_group_state = dataclasses.replace(self.get_worker_group_state(), workers=workers)
        found = super()._poll_workers_and_collect_errors(timeout)
        if failure is not None:
            return [dataclasses.replace(found[0], error=failure), *found[1:]]
        is_over = any(not one.running and one.error is None for one in found)
        for index, status in enumerate(found):
            is_death = isinstance(status.error, WorkerHealthCheckFailedError)
            if is_death and not is_over and not self.membership.restarts:
                found[index] = WorkerStatus(running=True)
        return found

    def shutdown(self) -> None:
        """As Ray's."""
        self.membership.end()
        super().shutdown()

    def abort(self) -> None:
        """As Ray's."""
        self.membership.end()
        super().abort()

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> Any:
        return SeatsHandle(self.reservation)

    def _create_workers(
        self,
        num_workers: int,
        placement_group: Any,
        resources_per_worker: dict[str, float],
        placement_group_bundle_indices: list[int] | None = None,
        starting_world_rank: int = 0,
        world_size: int | None = None,
        replica_group_size: int | None = None,
    ) -> list[Worker]:
        taken = self.reservation.take_actors()
        self._seats = [seat for seat, _ in taken]
        workers = [
            Worker(seat.actor, metadata, resources_per_worker, placement_group_bundle_index=seat.index)
            for seat, metadata in taken
        ]
        return WorkerGroup._assign_worker_ranks(workers, starting_world_rank, world_size, replica_group_size)

    def _init_train_context_on_workers(
        self, workers: list[Worker], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        """As Ray's, without the handle of a controller actor: the controller is not an actor here."""
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{name: values[index] for name, values in train_context_args.items()},
                )
                for index, worker in enumerate(workers)
            ],
            timeout=START_LIMIT_S,
        )
        self._decorate_worker_log_file_paths(workers)


class Controller(TrainController):
    """Ray Train's controller over our worker group."""

    worker_group_cls = SeatedWorkerGroup


def _without_traceback(record: logging.LogRecord) -> bool:
    """Whether Ray's controller may log `record`: not where the run says it in a sentence."""
    told = OSError | EaglerayError | WorkerGroupStartupFailedError | Suspended
    return not (record.exc_info and isinstance(record.exc_info[1], told))


class Trainer(TorchTrainer):
    """A TorchTrainer whose controller runs in this process: no actor of its own to start and import for."""

    def __init__(
        self,
        *args: Any,
        spec: TrainSpec,
        run: Folder,
        observer: Observer,
        first_attempt: int,
        reservation: Reservation,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self._observer, self._reservation = observer, reservation
        self._watch: Watch | None = None
        scaling = spec.scaling
        self.membership = Membership(
            reservation,
            first_attempt=first_attempt,
            minimum=scaling.minimum,
            wanted=scaling.num_workers,
            spares=scaling.spares,
            restarts=scaling.on_change == "restart",
            heartbeat_s=recovery_ray260.in_use().heartbeat_s,
            max_failures=scaling.max_failures,
            tell=self._tell,
            note=Notes(run, self._say).note,
            part=self._part,
        )
        SeatedWorkerGroup.reservation, SeatedWorkerGroup.membership = reservation, self.membership

    def _tell(self, news: Change | Record) -> None:
        if self._watch is not None:
            self._watch.note(news)

    def _say(self, text: str) -> None:
        self._tell({"kind": "note", "time": time.time(), "text": text})

    def _part(self, worker: Worker) -> None:
        if self._watch is not None:
            self._watch.part(worker)

    def _initialize_and_run_controller(self, **controller: Any) -> Any:
        callbacks = [
            callback for callback in controller.pop("callbacks") if not isinstance(callback, UNUSED_CALLBACKS)
        ]
        watch = self._watch = Watch(self._observer, self.membership)
        controller["callbacks"] = [*callbacks, watch]
        controller["failure_policy"] = RetryPolicy(self.run_config.failure_config, self._observer, watch)
        # A request for nodes that are reserved already, late on a busy machine: a warning with a traceback.
        autoscaling_coordinator_client.logger.setLevel(logging.ERROR)
        controller_module.logger.addFilter(_without_traceback)
        running = Controller(**controller)
        try:
            asyncio.run(running.run())
        except BaseException:
            group = running.get_worker_group()
            if group is not None:
                group.abort()
            raise
        return running.get_result()
