"""That Ray Tune's controller still has what ours stands on; fails loudly when Ray moves it."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import pytest
import ray.tune  # noqa: F401
from ray.air.execution._internal import RayActorManager
from ray.tune.execution.tune_controller import TuneController
from ray.tune.utils.object_cache import _ObjectCache

from eagleray.tuning.controller_ray260 import Controller, _Classes, in_place
from eagleray.tuning.tune_parts_ray260 import ORDERS, OneWorkerTrial


def test_ray_tune_takes_our_controller() -> None:
    source = inspect.getsource(sys.modules["ray.tune.tune"])
    assert "runner = TuneController(**runner_kwargs)" in source
    with in_place():
        assert sys.modules["ray.tune.tune"].TuneController is Controller  # type: ignore[attr-defined]
    assert sys.modules["ray.tune.tune"].TuneController is TuneController  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("on_step_begin", []),
        ("_update_trial_queue", ["blocking", "timeout"]),
        ("_maybe_update_trial_queue", []),
        ("_maybe_cache_trial_actor", ["trial"]),
        ("_cleanup_cached_actors", ["force_all"]),
        ("_unstage_trial_with_resources", ["trial"]),
        ("stop_trial", ["trial"]),
    ],
)
def test_the_methods_that_it_changes_and_calls_are_there(method: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(TuneController, method)).parameters) == ["self", *parameters]


def test_a_step_begins_with_what_ours_does_then_asks_for_trials_then_starts_them() -> None:
    source = inspect.getsource(TuneController.step)
    places = [
        source.index(call)
        for call in ("self.on_step_begin()", "self._maybe_update_trial_queue()", "self._maybe_add_actors()")
    ]
    assert places == sorted(places)
    assert "if trial in self._staged_trials" in inspect.getsource(
        TuneController._unstage_trial_with_resources
    )
    assert "not exception and self._maybe_cache_trial_actor(trial)" in inspect.getsource(
        TuneController._schedule_trial_stop
    )


def test_a_trials_actor_hears_the_driver_in_a_thread_of_its_own() -> None:
    made: Any = _Classes().get(OneWorkerTrial)
    assert made.__ray_metadata__.concurrency_groups[ORDERS] == 1
    assert made.__ray_metadata__.method_meta.concurrency_group_for_methods["pause"] == ORDERS


def test_the_values_that_it_reads_are_there() -> None:
    made = inspect.getsource(TuneController.__init__)
    for name in ("_pending_trials", "_staged_trials", "_live_trials", "_scheduler_alg", "_actor_cache"):
        assert f"self.{name}" in made, name
    assert "self._class_cache = _ActorClassCache()" in made
    assert "self._insufficient_resources_manager" in made
    manager = inspect.getsource(RayActorManager.__init__)
    assert "self._live_actors_to_ray_actors_resources" in manager
    assert "self._pending_actors_to_attrs" in manager
    assert "_pending_actors_to_attrs[tracked_actor] = cls, kwargs, resource_request" in inspect.getsource(
        RayActorManager.add_actor
    )
    assert "self._cached_objects" in inspect.getsource(_ObjectCache.__init__)
