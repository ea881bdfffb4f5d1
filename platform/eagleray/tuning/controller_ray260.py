"""Ray Tune's controller, with what it lacks for a search whose room changes.

It waits for the next trial where none runs, and hears of nothing else meanwhile; and it keeps an idle process
of its own, with all its resources, for a trial that may come later. `tests/unit/tuning/test_controller.py`
fails when Ray moves the methods.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.tune.execution.class_cache import _ActorClassCache
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial

from eagleray.tuning.record import Trial
from eagleray.tuning.room import Order
from eagleray.tuning.running import RunningSearch
from eagleray.tuning.tune_parts_ray260 import ORDERS, Seat


class _NoAdvice:
    """In place of Ray's advice where nothing runs: the search says why, and Ray's fails without trials."""

    def on_no_available_trials(self, all_trials: Any) -> None:
        """Nothing."""


class _Classes(_ActorClassCache):
    """Actors of trials have a thread in which they hear the driver, whatever their main one does."""

    def get(self, trainable_cls: Any) -> Any:
        """As Ray's."""
        found = super().get(trainable_cls)
        metadata = found.__ray_metadata__
        metadata.concurrency_groups = {**(metadata.concurrency_groups or {}), ORDERS: 1}
        return found


class Controller(TuneController):
    """Carries out the orders of a `RunningSearch`, and tells it what Ray has given to it."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self._insufficient_resources_manager: Any = _NoAdvice()
        self._class_cache = _Classes()

    @property
    def _search(self) -> RunningSearch:
        return self._scheduler_alg.search  # type: ignore[attr-defined]

    def on_step_begin(self) -> None:
        """A few times a second, before anything else."""
        super().on_step_begin()
        self._search.attempt(self._follow)

    def _follow(self) -> None:
        for trial, order in self._search.orders():
            self._make_leave(trial, order)
        manager: Any = self._actor_manager
        live = manager._live_actors_to_ray_actors_resources.values()
        in_use = _units_of(acquired.resource_request for _, acquired in live)
        asked_for = _units_of(seat for _, _, seat in manager._pending_actors_to_attrs.values())
        self._search.tell(in_use=in_use, asked_for=asked_for)
        cache: Any = self._actor_cache._cached_objects
        self._search.room.prefer(_units_of(seat for seat, idle in cache.items() for _ in idle))

    def _make_leave(self, trial: Trial, order: Order) -> None:
        found = next(
            (
                one
                for one in self._live_trials
                if self._search.trial(one.config) is trial and not one.is_finished()
            ),
            None,
        )
        if found is None:
            return
        if found.status == TuneTrial.PENDING:
            if found in self._staged_trials:
                self._unstage_trial_with_resources(found)
            self.stop_trial(found)
            return
        actor: Any = found.temporary_state.ray_actor
        if self._search.may_be_ended(trial, order):
            ray.kill(actor)
        elif self._search.is_to_be_asked(trial):
            actor.pause.remote(order.left_s)

    def _update_trial_queue(self, blocking: bool = False, timeout: int = 600) -> bool:
        return super()._update_trial_queue(blocking=False)

    def _maybe_update_trial_queue(self) -> None:
        super()._maybe_update_trial_queue()
        if not self._pending_trials and self._actor_cache.num_cached_objects:
            self._cleanup_cached_actors(force_all=True)

    def _maybe_cache_trial_actor(self, trial: TuneTrial) -> bool:
        seat: Any = trial.placement_group_factory
        if not self._search.keeps_process(seat.units):
            return False
        return super()._maybe_cache_trial_actor(trial)


def _units_of(seats: Iterable[Seat]) -> Counter[str]:
    """By node, over all seats."""
    found = Counter[str]()
    for seat in seats:
        found.update(seat.units)
    return found


@contextmanager
def in_place() -> Iterator[None]:
    """Ray Tune takes our controller meanwhile."""
    module: Any = sys.modules["ray.tune.tune"]
    assert module.TuneController is TuneController, "Ray Tune takes its controller from elsewhere"
    module.TuneController = Controller
    try:
        yield
    finally:
        module.TuneController = TuneController
