"""What Ray Tune is handed, by its own schedulers and without a cluster; fails loudly when Ray moves them."""

from __future__ import annotations

import pickle
import random
from dataclasses import dataclass
from typing import Any

import pytest
from ray import cloudpickle

from eagleray.specs import TuneSpec, validate
from eagleray.tuning import Trial, make_suggester, tune_parts_ray260
from eagleray.tuning.driver import may_reuse_actors
from eagleray.tuning.record import State
from eagleray.tuning.room import Anywhere
from eagleray.tuning.running import HOPELESS, RunningSearch, StopRequest
from eagleray.tuning.tune_parts_ray260 import (
    Judge,
    ManyWorkersTrial,
    OneWorkerTrial,
    Stopper,
    Suggesting,
    Telling,
    make_scheduler,
    resources,
)

METRIC = "validation_accuracy"
BASE: dict[str, Any] = {
    "kind": "train",
    "name": "t",
    "data": {"kind": "digits"},
    "model": {"kind": "mlp"},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "adamw", "lr": 0.01},
    "training": {"epochs": 3},
}


def spec(**changes: Any) -> TuneSpec:
    table = {
        "kind": "tune",
        "name": "t",
        "base": BASE,
        "space": {"optimizer.lr": {"kind": "uniform", "min": 0.1, "max": 0.2}},
        "searcher": {"kind": "random"},
        "scheduler": {"kind": "asha", "grace_evaluations": 1, "reduction_factor": 2},
        "budget": {"num_trials": 6},
        **changes,
    }
    return validate(TuneSpec, table, name="spec")


class Observer:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def created(self, number: int, values: dict[str, Any]) -> Trial:
        return Trial(number, values, f"t-{number}")

    def prepared(self, trial: Trial, spec: Any) -> str:
        return f"runs/{trial.run_id}"

    def started(self, trial: Trial, attempt: int, workers: Any) -> None:
        self.heard.append(("started", trial.number))

    def records(self, trial: Trial, records: Any) -> None: ...

    def recovered(self, trial: Trial) -> None:
        self.heard.append(("recovered", trial.number))

    def ended(self, trial: Trial, outcome: Any, details: Any) -> None:
        self.heard.append(("ended", trial.number, trial.state))

    def paused(self, trial: Trial, saved_step: int, reason: str) -> None:
        self.heard.append(("paused", trial.number, trial.step, saved_step))

    def tick(self, *, is_waiting: bool) -> None:
        raise OSError(28, "no space")


def search(search_spec: TuneSpec, trials: list[Trial] | None = None) -> RunningSearch:
    return RunningSearch(
        search_spec,
        [] if trials is None else trials,
        suggester=make_suggester(search_spec),
        observer=Observer(),
        stop=StopRequest(),
        room=Anywhere(),
        num_concurrent=4,
    )


@dataclass(frozen=True)
class TuneTrial:
    """Ray Tune's trial, as its schedulers and our callback know it."""

    trial_id: str
    number: int

    @property
    def config(self) -> dict[str, Any]:
        return {"number": self.number}


def tune_trial(number: int) -> Any:
    return TuneTrial(str(number), number)


def earlier(number: int, state: State, *values: float) -> Trial:
    evaluations = [{"step": index * 10.0, METRIC: value} for index, value in enumerate(values, start=1)]
    return Trial(number, {"optimizer.lr": 0.15}, f"t-{number}", state, evaluations=evaluations)


def report(count: int, value: float, is_last: bool = False) -> dict[str, Any]:
    return {"evaluation": count, "is_last": is_last, "step": count * 10, METRIC: value, "records": []}


def test_asha_ends_what_is_below_the_better_half_but_not_at_its_last_step() -> None:
    running = search(spec())
    judge = Judge(running, make_scheduler(running.spec))
    for number in (1, 2, 3):
        assert running.next_config() is not None
        judge.on_trial_add(None, tune_trial(number))
    assert judge.on_trial_result(None, tune_trial(1), report(1, 0.9)) == "CONTINUE"
    assert judge.on_trial_result(None, tune_trial(2), {"records": []}) == "CONTINUE", "no evaluation"
    assert judge.on_trial_result(None, tune_trial(2), report(1, 0.5, is_last=True)) == "CONTINUE"
    assert judge.on_trial_result(None, tune_trial(3), report(1, 0.4)) == "STOP"
    assert running.trials[2].why_stopped == "asha, after 1 evaluation"


@pytest.mark.parametrize(
    "scheduler",
    [
        {"kind": "asha", "grace_evaluations": 1, "reduction_factor": 2},
        {"kind": "median", "grace_evaluations": 1, "min_trials": 1},
    ],
)
def test_a_scheduler_sees_the_trials_of_an_earlier_driver(scheduler: dict[str, Any]) -> None:
    trials = [earlier(1, "finished", 0.8, 0.9), earlier(2, "failed", 0.99), earlier(3, "waiting", 0.85)]
    running = search(spec(scheduler=scheduler), trials)
    judge = Judge(running, make_scheduler(running.spec))
    assert running.next_config() is not None, "the one that waits comes first"
    judge.on_trial_add(None, tune_trial(3))
    judge.on_trial_add(None, tune_trial(3))  # it is started again
    assert judge.on_trial_result(None, tune_trial(3), report(2, 0.95)) == "CONTINUE"
    assert running.next_config() is not None
    judge.on_trial_add(None, tune_trial(4))
    assert judge.on_trial_result(None, tune_trial(4), report(1, 0.1)) == "STOP"


def test_without_enough_others_the_median_rule_lets_a_trial_go_on() -> None:
    running = search(spec(scheduler={"kind": "median", "grace_evaluations": 1, "min_trials": 3}))
    judge = Judge(running, make_scheduler(running.spec))
    assert running.next_config() is not None
    judge.on_trial_add(None, tune_trial(1))
    assert judge.on_trial_result(None, tune_trial(1), report(1, 0.1)) == "CONTINUE"


def test_a_resumed_search_takes_up_what_waits_then_tries_the_rest() -> None:
    running = search(spec(), [earlier(1, "finished", 0.8), earlier(2, "waiting"), earlier(3, "failed")])
    suggesting = Suggesting(running)
    numbers = []
    while isinstance(config := suggesting.suggest("x"), dict):
        numbers.append(config["number"])
    assert numbers == [2, 4, 5, 6]
    assert config is None, "those that run might pause, and come again"
    for number in numbers:
        running.lost(running.trials[number - 1])
    assert suggesting.suggest("x") == "FINISHED"


def test_values_that_exclude_each_other_are_a_failed_trial_and_the_next_one_is_tried() -> None:
    text = {
        "data": {"kind": "stdlib_text"},
        "model": {"kind": "gpt", "width": 8, "num_heads": 2},
        "loss": {"kind": "next_token"},
    }
    space = {
        "model.width": {"kind": "choice", "values": [8, 9]},
        "model.num_heads": {"kind": "choice", "values": [2, 3]},
    }
    running = search(
        spec(base=BASE | text, space=space, searcher={"kind": "grid"}, budget={}, metric="validation_loss")
    )
    numbers = []
    while (config := running.next_config()) is not None:
        numbers.append(config["number"])
    assert numbers == [1, 4]
    assert [trial.state for trial in running.trials] == ["waiting", "failed", "failed", "waiting"]
    assert "width (8) must be divisible by num_heads (3)" in str(running.trials[1].error)


def test_how_a_trial_ends() -> None:
    running = search(spec())
    telling = Telling(running)
    for number in range(1, 5):
        assert running.next_config() is not None
        started = {"attempt": 1, "workers": []}
        telling.on_trial_result(0, [], tune_trial(number), {"started": started, "records": []})
    assert [trial.state for trial in running.trials] == ["running"] * 4
    outcome = {"outcome": {"evaluations": [{"step": 10, METRIC: 0.5}]}, "records": []}
    telling.on_trial_result(0, [], tune_trial(1), outcome)
    failed = {"failed": {"error": "the loss is not finite", "details": []}, "records": []}
    telling.on_trial_result(0, [], tune_trial(2), failed)
    for number in (1, 2, 3):
        telling.on_trial_complete(0, [], tune_trial(number))
    telling.on_trial_recover(0, [], tune_trial(4))
    assert running.trials[3].state == "waiting"
    telling.on_trial_error(0, [], tune_trial(4))
    assert [trial.state for trial in running.trials] == ["finished", "failed", "stopped", "failed"]
    assert str(running.trials[3].error).startswith("its process ended")
    assert running.failure is None


def test_what_the_observer_raises_ends_the_search_and_is_raised_again() -> None:
    running = search(spec())
    Telling(running).on_step_end(0, [])
    assert Stopper(running).stop_all()
    with pytest.raises(OSError, match="no space"):
        running.close()


def test_the_search_ends_when_trial_after_trial_fails() -> None:
    trials = [earlier(number, "failed") for number in range(1, HOPELESS + 1)]
    assert Stopper(search(spec(budget={"num_trials": 9}), trials)).stop_all()
    trials[2].state = "finished"
    assert not Stopper(search(spec(budget={"num_trials": 9}), trials)).stop_all()


def test_trials_that_run_at_the_end_are_interrupted_or_ended_by_the_time_budget() -> None:
    for reason, state in (("signal", "interrupted"), ("time", "stopped")):
        running = search(spec(), [earlier(1, "running", 0.5), earlier(2, "waiting")])
        running._stop.reason = reason
        running.close()
        assert [trial.state for trial in running.trials] == [state, "waiting"]


def test_ray_tune_can_pickle_its_parts() -> None:
    running = search(spec())
    for part in (Suggesting(running), Judge(running, make_scheduler(running.spec)), Telling(running)):
        assert pickle.loads(cloudpickle.dumps(part)) is not None
    assert pickle.loads(cloudpickle.dumps(Stopper(running))) is not None


def test_what_an_actor_holds() -> None:
    actor, seat = resources(spec(scaling={"cpus_per_worker": 0.5, "gpus_per_worker": 1}).scaling)
    assert (actor, seat({"seat": {}}).bundles) == (OneWorkerTrial, [{"CPU": 0.5, "GPU": 1.0}])
    actor, seat = resources(spec(scaling={"num_workers": 2}).scaling)
    assert (actor, seat({"seat": {}}).bundles) == (ManyWorkersTrial, [{"node:__internal_head__": 0.001}])


def test_a_seat_lies_on_its_node_and_its_group_has_the_claims_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def ask(bundles: Any, strategy: str, **more: Any) -> None:
        asked.append({"bundles": bundles, **more})

    monkeypatch.setattr(tune_parts_ray260, "placement_group", ask)
    scaling = spec(scaling={"label_selector": {"zone": "a"}}).scaling
    _, seat = resources(scaling, "search-1")
    first, second = pickle.loads(cloudpickle.dumps(seat({"seat": {"n1": 1}}))), seat({"seat": {"n1": 1}})
    assert first == second
    assert hash(first) == hash(second), "a process on one can be used for the other"
    assert first != seat({"seat": {"n2": 1}})
    for one in (first, second):
        one.to_placement_group()
    assert asked[0]["bundles"] == [{"CPU": 1.0}]
    assert asked[0]["bundle_label_selector"] == [{"zone": "a", "ray.io/node-id": "n1"}]
    names = [one["name"] for one in asked]
    assert all(name.startswith("eagleray-claim:search-1:") for name in names)
    assert names[0] != names[1], "Ray takes no two of one name"


@pytest.mark.parametrize(
    "scheduler",
    [
        {"kind": "asha", "grace_evaluations": 1, "reduction_factor": 2},
        {"kind": "median", "grace_evaluations": 1, "min_trials": 2},
    ],
)
def test_pauses_change_no_verdict(scheduler: dict[str, Any]) -> None:
    """A trial that comes again is another one to Ray Tune."""
    source = random.Random(7)
    values = {number: [source.random() for _ in range(9)] for number in range(1, 7)}
    schedule = [number for number in values for _ in range(9)]
    source.shuffle(schedule)

    def verdicts(is_pausing: bool) -> list[tuple[int, int, str]]:
        running = search(spec(scheduler=scheduler))
        judge = Judge(running, make_scheduler(running.spec))
        counts, found, ended = dict.fromkeys(values, 0), [], set()
        for number in values:
            assert running.next_config() is not None
            judge.on_trial_add(None, TuneTrial(str(number), number))
        for turn, number in enumerate(schedule):
            if number in ended:
                continue
            name = f"{number}-{turn}" if is_pausing else str(number)
            if is_pausing:
                judge.on_trial_add(None, TuneTrial(name, number))
            value = values[number][counts[number]]
            counts[number] += 1
            verdict = judge.on_trial_result(None, TuneTrial(name, number), report(counts[number], value))
            found.append((number, counts[number], verdict))
            if verdict == "STOP":
                ended.add(number)
        return found

    undisturbed = verdicts(is_pausing=False)
    assert {"STOP", "CONTINUE"} == {verdict for *_, verdict in undisturbed}
    assert verdicts(is_pausing=True) == undisturbed


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"scaling": {"num_workers": 2}}, False),
        ({"overrides": {"model": {"kind": "module", "function": "torchvision.models:resnet18"}}}, False),
    ],
)
def test_actors_are_used_again_where_that_is_safe(changes: dict[str, Any], expected: bool) -> None:
    assert may_reuse_actors(spec(**changes)) is expected
