"""What Ray Tune is handed: searcher, scheduler, callback and stopper, each a thin face of `RunningSearch`.

Public and developers' interfaces of Ray 2.60; `tests/unit/tuning/test_tune_parts.py` fails when they move.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.trainable.function_trainable import wrap_function
from ray.util.placement_group import PlacementGroup, placement_group

from eagleray.cluster.names import CLAIM_GROUP, NODE_ID_LABEL, ON_HEAD
from eagleray.specs import TuneSpec
from eagleray.specs.strategies import AshaScheduler, MedianScheduler
from eagleray.specs.train import ScalingSpec
from eagleray.tuning.running import RunningSearch
from eagleray.tuning.search import resources_of
from eagleray.tuning.trial import PAUSING, many_workers, one_worker

TIME = "evaluation"
"""Schedulers count evaluations: trials with other batch sizes do as many of them."""
MAX_EVALUATIONS = 1_000_000
ORDERS = "orders"
"""Name of the thread in which a trial's actor hears the driver."""


class _Quiet(tune.Trainable):
    """Pauses when it is asked to, and ends without a word when its node is given back.

    (Ray's own way out of SIGTERM may print a traceback.)
    """

    @ray.method(concurrency_group=ORDERS)
    def pause(self, left_s: float | None = None) -> None:
        """Have the trial's function commit after its next step, and return.

        Args:
            left_s: seconds until it has to be gone; None: there is no limit.
        """
        PAUSING.ask(left_s)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Make room for another trial."""
        PAUSING.forget()
        return super().reset_config(new_config)

    def cleanup(self) -> None:
        """End the trial's function, and wait for the end of the process."""
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        super().cleanup()


class OneWorkerTrial(_Quiet, wrap_function(one_worker)):  # type: ignore[misc]
    """The actor of a trial of one worker."""


class ManyWorkersTrial(_Quiet, wrap_function(many_workers)):  # type: ignore[misc]
    """The actor that drives a trial of several workers."""


class Seat(tune.PlacementGroupFactory):
    """What a trial's actor holds, and the units of the search's claim that the trial has."""

    def __init__(
        self,
        bundle: Mapping[str, float],
        labels: Mapping[str, str],
        *,
        units: Mapping[str, int],
        claim: str | None = None,
    ):
        """As Ray's, for one bundle.

        Args:
            bundle: of the actor.
            labels: that its node must have.
            units: of the trial, by node id.
            claim: whose unit the actor has, if it has one: the ledger knows its group by the name.
        """
        more: Any = {"bundle_label_selector": [dict(labels)]} if labels else {}
        super().__init__([dict(bundle)], **more)
        self.units, self._claim = dict(units), claim

    def to_placement_group(self) -> PlacementGroup:
        """Ask Ray for it. Ray takes no two groups of one name."""
        if self._claim is None:
            return super().to_placement_group()
        bound: Any = self._bound
        name = f"{CLAIM_GROUP}{self._claim}:{secrets.token_hex(6)}"
        return placement_group(*bound.args, **bound.kwargs, name=name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seat) and super().__eq__(other) and self.units == other.units

    def __hash__(self) -> int:
        return hash((super().__hash__(), tuple(sorted(self.units.items()))))


def resources(
    scaling: ScalingSpec, claim: str | None = None
) -> tuple[type[tune.Trainable], Callable[[Mapping[str, Any]], Seat]]:
    """The actor of a trial, and what it holds: a function of the trial's configuration."""
    if scaling.num_workers > 1:
        # Its workers hold what they need; where nodes come and go a driver belongs on the head.
        return ManyWorkersTrial, lambda config: Seat(ON_HEAD, {}, units=config["seat"])

    def seat(config: Mapping[str, Any]) -> Seat:
        units, labels = config["seat"], dict(scaling.label_selector)
        if units:
            (labels[NODE_ID_LABEL],) = units
        return Seat(resources_of(scaling), labels, units=units, claim=claim)

    return OneWorkerTrial, seat


def make_scheduler(spec: TuneSpec) -> TrialScheduler:
    """Ray Tune's scheduler that `spec.scheduler` names."""
    judged_by: dict[str, Any] = {
        "time_attr": TIME,
        "metric": spec.metric,
        "mode": "max" if spec.is_max_better else "min",
    }
    match spec.scheduler:
        case AshaScheduler(grace_evaluations=grace, reduction_factor=factor):
            return AsyncHyperBandScheduler(
                **judged_by, max_t=MAX_EVALUATIONS, grace_period=grace, reduction_factor=factor
            )
        case MedianScheduler(grace_evaluations=grace, min_trials=min_trials):
            return Median(**judged_by, grace_period=grace, min_samples_required=min_trials)
        case _:
            return FIFOScheduler()


class Median(MedianStoppingRule):
    """Ray Tune's rule, but a trial without enough others to compare it with goes on: Ray's pauses it.

    And a trial that it would end may report again: `Judge` lets it finish, or tells of an earlier driver's.
    """

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        """CONTINUE or STOP."""
        verdict = super().on_trial_result(tune_controller, trial, result)
        self._stopped_trials.discard(trial)
        return verdict

    def _on_insufficient_samples(self, tune_controller: Any, trial: Any, time: float) -> str:
        return TrialScheduler.CONTINUE


class Suggesting(Searcher):
    """Gives Ray Tune the next trial."""

    def __init__(self, search: RunningSearch):
        super().__init__(metric=None, mode=None)
        self._search = search

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial's configuration; None where there is none now, but may be later."""
        made: list[dict[str, Any] | None] = [None]

        def make() -> None:
            made[0] = self._search.next_config()

        self._search.attempt(make)
        if made[0] is None and self._search.is_exhausted:
            return Searcher.FINISHED
        return made[0]

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Nothing: `Telling` hears of it too, and knows how the trial ended."""

    def save(self, checkpoint_path: str) -> None:
        """An empty file, where Ray Tune wants one."""
        open(checkpoint_path, "w").close()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Known:
    """A trial as its scheduler knows it: one and the same for all its starts, and under every driver."""

    trial_id: str


class Judge(FIFOScheduler):
    """Lets a scheduler see evaluations only, those of earlier drivers first.

    A trial that goes on after a pause is a new one to Ray Tune, and not to the scheduler: else it would be
    compared with itself, at marks that it has passed.
    """

    def __init__(self, search: RunningSearch, scheduler: TrialScheduler):
        super().__init__()
        self.search, self._scheduler = search, scheduler
        self._seen: set[int] = set()
        for trial in search.trials:
            if trial.is_over and trial.state != "failed":
                self._show(trial.number)

    def __reduce__(self) -> Any:
        return FIFOScheduler, ()

    def _show(self, number: int) -> None:
        """Let the scheduler see what the trial measured under an earlier driver; its verdict is history."""
        if number in self._seen:
            return
        self._seen.add(number)
        known: Any = Known(str(number))
        self._scheduler.on_trial_add(None, known)  # type: ignore[arg-type]
        for count, evaluation in enumerate(self.search.trials[number - 1].evaluations, start=1):
            self._scheduler.on_trial_result(None, known, {TIME: count, **evaluation})  # type: ignore[arg-type]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A new trial, or one that starts again."""
        self._show(self.search.trial(trial.config).number)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        """Whether the trial goes on. One that has just taken its last step is not ended, it finishes."""
        if TIME not in result:
            return TrialScheduler.CONTINUE
        found = self.search.trial(trial.config)
        measured = {TIME: result[TIME], **{name: result[name] for name in result if _is_metric(name)}}
        known: Any = Known(str(found.number))
        verdict = self._scheduler.on_trial_result(tune_controller, known, measured)
        if verdict != TrialScheduler.STOP or result["is_last"]:
            return TrialScheduler.CONTINUE
        self.search.judged(found, result[TIME])
        return verdict


def _is_metric(name: str) -> bool:
    return name.startswith("validation_")


class Telling(tune.Callback):
    """Hands what Ray Tune tells to the search."""

    def __init__(self, search: RunningSearch):
        self._search = search

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        """The trial reported."""
        found = self._search.trial(trial.config)
        self._search.attempt(lambda: self._search.reported(found, result))

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """The trial's function returned, or the scheduler ended it."""
        found = self._search.trial(trial.config)
        self._search.attempt(lambda: self._search.completed(found))

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """The trial's actor died and is started again."""
        found = self._search.trial(trial.config)
        self._search.attempt(lambda: self._search.recovered(found))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """The trial's actor died too often."""
        found = self._search.trial(trial.config)
        self._search.attempt(lambda: self._search.lost(found))

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        """Every 0.1 s, or more often."""
        self._search.attempt(self._search.tick)


class Stopper(tune.Stopper):
    """Ends the whole search."""

    def __init__(self, search: RunningSearch):
        self._search = search

    def __call__(self, trial_id: str, result: dict) -> bool:
        """Never a single trial: that is the scheduler's part."""
        return False

    def stop_all(self) -> bool:
        """Whether all trials end now."""
        return self._search.should_stop()
