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
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from eagleray.errors import TrainingError

WORKER_SETTINGS = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # a user's print would come out twice
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # a lost rank 0 is said in a sentence, not in pages of C++ frames
}

ORDERS = "orders"
"""Name of the threads in which an actor hears the driver while its main one does something else."""
NUM_ORDER_THREADS = 4
MAX_DEATHS_AT_START = 5
"""In a row, of workers whose node goes on living (killed for memory, say): then the run ends."""
GRACE_S = 1.0
"""How long a run that could begin waits for more seats."""
PLACED_EVERY_S = 0.1


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

    @ray.method(concurrency_group=ORDERS)
    def form(self, formation: Any) -> None:
        """See `station.Station`."""
        _station().form(formation)

    @ray.method(concurrency_group=ORDERS)
    def notice(self, number: int) -> None:
        """See `station.Station`."""
        _station().notice(number)

    @ray.method(concurrency_group=ORDERS)
    def news(self) -> Any:
        """See `station.Station`."""
        return _station().news()

    @ray.method(concurrency_group=ORDERS)
    def break_groups(self) -> int:
        """Wake the train function wherever it waits for other ranks."""
        from eagleray import groups

        return groups.break_groups()

    def init_train_context(self, **context: Any) -> None:
        """Take rank, world size and storage of this attempt."""
        self._worker.init_train_context(**context)
        _quiet()


def _station() -> Any:
    from eagleray.training.station import STATION

    return STATION


def _quiet() -> None:
    """Keep two of Ray Train's loggers out of the job's log; they are in no hierarchy that could be set.

    One says a line per rank and checkpoint; the other a traceback for each error, which our driver says in
    one line, or shows by itself where the error is not ours.
    """
    from ray.train.v2._internal import util
    from ray.train.v2._internal.execution import context

    context.logger.setLevel(logging.WARNING)
    util.logger.setLevel(logging.CRITICAL)


@dataclass(eq=False)
class Seat:
    """What one worker holds on one node."""

    group: PlacementGroup
    index: int
    """Of its bundle in the group."""
    is_own: bool
    """The group has no other seat: it can be given back alone."""
    actor: Any = None

    @property
    def is_placed(self) -> bool:
        """Whether a node has it now; Ray moves it by itself when its node dies."""
        return placement_group_table(self.group).get("state") == "CREATED"


def create_actor(seat: Seat, bundle: Mapping[str, float]) -> Any:
    """A worker actor on a seat."""
    resources = dict(bundle)
    options: dict[str, Any] = {
        "num_cpus": resources.pop("CPU", 0),
        "num_gpus": resources.pop("GPU", 0),
        "resources": resources,
        "concurrency_groups": {ORDERS: NUM_ORDER_THREADS},
    }
    actor_class: Any = ray.remote(**options)(WorkerActor)
    strategy = PlacementGroupSchedulingStrategy(seat.group, placement_group_bundle_index=seat.index)
    return actor_class.options(scheduling_strategy=strategy).remote()


class Reservation:
    """A run's seats, and the worker actors on them, made as soon as they are placed.

    A run of a fixed size has one placement group, whose bundles Ray spreads over the nodes. One that may
    shrink and grow has a group for each seat, so that each can be given back alone. (Actors made before their
    seats are placed would have Ray warn every second that no node type offers the group's resources.)

    What waits for seats waits without a limit, and says so: Ray Train would give up after 60 s, each time as
    a failure of the run's controller. But a node that died may take longer to come back: a new machine of a
    cloud, or one that somebody has to start again.
    """

    def __init__(
        self,
        bundle: Mapping[str, float],
        count: int,
        label_selector: Mapping[str, str],
        minimum: int | None = None,
    ):
        """Ask for the seats.

        Args:
            bundle: resources of one worker.
            count: workers that are wanted at first.
            label_selector: of their nodes.
            minimum: workers that the run can train with; None: all of them.
        """
        self.bundle, self.count = dict(bundle), count
        self.minimum = count if minimum is None else minimum
        self._selector = dict(label_selector)
        if self.minimum == count:
            group = self._group(count)
            self.seats = [Seat(group, index, is_own=False) for index in range(count)]
        else:
            self.seats = [self._own_seat() for _ in range(count)]
        self._lock = threading.Lock()
        self._has_made_ahead = False
        self.placed_at: float | None = None
        self._say: Callable[[str], None] = lambda _: None
        self._every_s, self._tell_after_s = 5.0, 5.0
        self._is_released = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._seat_first, daemon=True)
        self._thread.start()

    def _group(self, count: int) -> PlacementGroup:
        selectors: Any = [self._selector] * count if self._selector else None
        return placement_group([self.bundle] * count, strategy="SPREAD", bundle_label_selector=selectors)

    def _own_seat(self) -> Seat:
        return Seat(self._group(1), 0, is_own=True)

    def _seat_first(self) -> None:
        try:
            self._await_seats()
            if not self._is_released:
                self._spawn_all()
                self._has_made_ahead = True
                self.placed_at = time.time()
        except Exception as error:  # told by `wait`, in the driver's own thread
            self._failure = error

    def _await_seats(self, tell: Callable[[float], None] = lambda _: None) -> None:
        """Return when enough seats are placed: all, or the minimum and then GRACE_S for the others."""
        started, enough_at = time.monotonic(), None
        while not self._is_released:
            num_placed, now = sum(seat.is_placed for seat in self.seats), time.monotonic()
            if num_placed >= self.minimum and enough_at is None:
                enough_at = now
            if num_placed == len(self.seats) or (enough_at is not None and now - enough_at > GRACE_S):
                return
            tell(now - started)
            time.sleep(PLACED_EVERY_S)

    def _spawn_all(self) -> None:
        for seat in self.seats:
            if seat.is_placed:
                self.spawn(seat)

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
            f"waiting for {self.minimum} x ({describe(self.bundle)}): {waited_s:.0f} s; "
            "a node is starting, busy or missing"
        )

    def take_actors(self) -> list[tuple[Seat, Any]]:
        """A worker on each seat that is placed, with what it answers to `get_metadata`.

        At the first call they are those made ahead of time, else new ones.

        If a node dies meanwhile, this waits for another and makes the workers anew. It often does: the other
        ranks hear at once of a host that is gone, Ray only 3 to 20 s later.

        Raises:
            TrainingError: workers ended while they started, several times, and no node was lost; or a worker
                cannot be made: its constructor raised.
        """
        is_fresh, self._has_made_ahead = self._has_made_ahead, False
        num_left = MAX_DEATHS_AT_START
        while True:
            present = _live_nodes()
            if not is_fresh:
                self._end_workers()
                self._spawn_all()
            taken = [seat for seat in self.seats if seat.actor is not None]
            try:
                metadata = ray.get([seat.actor.get_metadata.remote() for seat in taken])
                return list(zip(taken, metadata, strict=True))
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
            is_fresh = False
            self._tell_after_s = self._every_s
            self.await_seats()

    def await_seats(self) -> None:
        """Block until enough seats are placed, and say so while it lasts."""
        self._await_seats(self._tell)

    def vacant(self, count: int) -> list[Seat]:
        """Up to so many seats that are placed and have no worker; asks for more where they are too few."""
        with self._lock:
            free = [seat for seat in self.seats if seat.actor is None]
            if self.minimum < self.count:
                self.seats += [self._own_seat() for _ in range(count - len(free))]
            return [seat for seat in free if seat.is_placed][:count]

    def spawn(self, seat: Seat) -> Any:
        """Make a worker on the seat."""
        seat.actor = create_actor(seat, self.bundle)
        return seat.actor

    def close(self, seat: Seat) -> None:
        """End the seat's worker; the seat itself is given back, if that is possible alone."""
        if seat.actor is not None:
            ray.kill(seat.actor)
            seat.actor = None
        if seat.is_own:
            with self._lock:
                self.seats = [other for other in self.seats if other is not seat]
            remove_placement_group(seat.group)

    def release(self) -> None:
        """End the workers that are left, and give the resources back."""
        self._is_released = True
        # A worker that still imports when its group is removed ends in a page of C++ frames (Ray 2.60).
        self._end_workers()
        for group in {seat.group.id: seat.group for seat in self.seats}.values():
            remove_placement_group(group)

    def _end_workers(self) -> None:
        """End those that were made last: Ray forgets a worker group whose start failed, and ends nobody."""
        for seat in self.seats:
            if seat.actor is not None:
                ray.kill(seat.actor)
                seat.actor = None


def _live_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def last_line(error: Exception) -> str:
    """The cause in Ray's long texts; ids and addresses stand before it."""
    return (str(error).strip().splitlines() or ["no message"])[-1].strip()


def describe(bundle: Mapping[str, float]) -> str:
    """For instance "1 CPU + 1 GPU"."""
    return " + ".join(f"{amount:g} {name}" for name, amount in sorted(bundle.items()))
