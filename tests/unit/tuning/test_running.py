"""Trials that have to leave their seats and come again; without Ray Tune."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eagleray.capacity import Units
from eagleray.specs import TrainSpec, TuneSpec, validate
from eagleray.tuning import Trial, make_suggester
from eagleray.tuning.room import Order, Use
from eagleray.tuning.running import RunningSearch, StopRequest

SPEC = {
    "kind": "tune",
    "name": "t",
    "base": {
        "kind": "train",
        "name": "t",
        "data": {"kind": "digits"},
        "model": {"kind": "mlp"},
        "loss": {"kind": "cross_entropy"},
        "optimizer": {"kind": "adamw", "lr": 0.01},
        "training": {"epochs": 3},
    },
    "space": {"optimizer.lr": {"kind": "uniform", "min": 0.1, "max": 0.2}},
    "searcher": {"kind": "random"},
    "budget": {"num_trials": 3},
}


class Room:
    """Has so many seats as a test says, and orders whom it names."""

    claim = "s"
    reason = "needed by service digits"

    def __init__(self, num_seats: int):
        self.num_seats, self.taken = num_seats, set[int]()
        self.ordered: dict[int, bool] = {}
        self.uses: list[Use] = []

    def take(self, number: int) -> Units | None:
        if len(self.taken) >= self.num_seats:
            return None
        self.taken.add(number)
        return {"a": 1}

    def leave(self, number: int) -> None:
        self.taken.discard(number)
        self.ordered.pop(number, None)

    def has_free(self, seat: Units) -> bool:
        return len(self.taken) < self.num_seats

    def orders(self, progress: Callable[[int], float]) -> list[Order]:
        return [Order(number, 0.0 if is_late else None) for number, is_late in self.ordered.items()]

    def prefer(self, nodes: Units) -> None: ...

    def tell(self, use: Use) -> None:
        self.uses.append(use)


class Observer:
    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def created(self, number: int, values: dict[str, Any]) -> Trial:
        return Trial(number, values, f"t-{number}")

    def prepared(self, trial: Trial, spec: TrainSpec) -> str:
        return f"runs/{trial.run_id}"

    def started(self, trial: Trial, attempt: int, workers: Any) -> None: ...

    def records(self, trial: Trial, records: Any) -> None: ...

    def recovered(self, trial: Trial) -> None:
        self.heard.append(("recovered", trial.number))

    def paused(self, trial: Trial, saved_step: int, reason: str) -> None:
        self.heard.append(("paused", trial.number, trial.step, saved_step, reason))

    def ended(self, trial: Trial, outcome: Any, details: Any) -> None:
        self.heard.append(("ended", trial.number, trial.state))

    def tick(self, *, is_waiting: bool) -> None:
        self.heard.append(("tick", is_waiting))


@pytest.fixture
def room() -> Room:
    return Room(2)


@pytest.fixture
def observer() -> Observer:
    return Observer()


@pytest.fixture
def search(room: Room, observer: Observer) -> RunningSearch:
    spec = validate(TuneSpec, SPEC, name="spec")
    return RunningSearch(
        spec,
        [],
        suggester=make_suggester(spec),
        observer=observer,
        stop=StopRequest(),
        room=room,
        num_concurrent=2,
    )


def start(search: RunningSearch) -> Trial:
    config = search.next_config()
    assert config is not None
    trial = search.trial(config)
    search.reported(trial, {"started": {"attempt": 1, "workers": []}, "records": []})
    return trial


def begin(search: RunningSearch, trial: Trial, step: int = 0) -> None:
    search.reported(trial, {"records": [{"kind": "phase", "name": "training", "step": step}]})


def take_steps(search: RunningSearch, trial: Trial, step: int, total: int = 100) -> None:
    search.reported(trial, {"records": [{"kind": "step", "step": step, "total_steps": total}]})


def pause(search: RunningSearch, trial: Trial, step: int, saved_step: int) -> None:
    search.reported(trial, {"paused": {"step": step, "saved_step": saved_step}, "records": []})
    search.completed(trial)


def orders(search: RunningSearch) -> list[tuple[Trial, str]]:
    """What the controller makes of the orders to trials whose processes are up."""
    return [
        (trial, "end" if search.may_be_ended(trial, order) else "ask")
        for trial, order in search.orders()
        if search.may_be_ended(trial, order) or search.is_to_be_asked(trial)
    ]


def test_a_trial_that_has_begun_is_asked_once_then_ended_when_it_is_late(
    search: RunningSearch, room: Room
) -> None:
    first, second = start(search), start(search)
    begin(search, first)
    room.ordered = {1: False, 2: False}
    assert orders(search) == [(first, "ask"), (second, "end")], "the second has no step to lose"
    assert orders(search) == [(second, "end")]
    room.ordered[1] = True
    assert orders(search) == [(first, "end"), (second, "end")]


def test_a_trial_of_several_workers_is_asked_whatever_it_does(room: Room, observer: Observer) -> None:
    spec = validate(TuneSpec, {**SPEC, "scaling": {"num_workers": 2}}, name="spec")
    search = RunningSearch(
        spec,
        [],
        suggester=make_suggester(spec),
        observer=observer,
        stop=StopRequest(),
        room=room,
        num_concurrent=2,
    )
    trial = start(search)
    room.ordered = {1: False}
    assert orders(search) == [(trial, "ask")]
    room.ordered = {1: True}
    assert orders(search) == [], "it ends its workers by itself"


def test_a_paused_trial_goes_on_first_when_there_is_room_again(
    search: RunningSearch, room: Room, observer: Observer
) -> None:
    first, second = start(search), start(search)
    begin(search, first)
    take_steps(search, first, 40)
    assert search.next_config() is None, "no room"
    assert not search.is_exhausted
    room.ordered[1], room.num_seats = False, 1
    assert orders(search) == [(first, "ask")]
    pause(search, first, 41, 41)
    assert (first.state, first.step) == ("paused", 41)
    assert observer.heard == [("paused", 1, 41, 41, room.reason)]
    assert search.next_config() is None
    room.num_seats = 2
    assert start(search) is first
    assert first.state == "running"
    search.reported(second, {"outcome": {"evaluations": []}, "records": []})
    search.completed(second)
    third = start(search)
    assert third.number == 3
    for trial in (first, third):
        assert not search.is_exhausted, "the one that runs might pause"
        search.reported(trial, {"outcome": {"evaluations": []}, "records": []})
        search.completed(trial)
    assert search.is_exhausted
    assert [trial.state for trial in search.trials] == ["finished"] * 3


@pytest.mark.parametrize("is_restarted", [True, False])
def test_a_trial_that_was_ended_in_the_middle_is_no_loss_and_no_failure(
    is_restarted: bool, search: RunningSearch, room: Room, observer: Observer
) -> None:
    trial = start(search)
    begin(search, trial)
    search.reported(trial, {"records": [{"kind": "commit", "step": 20}]})
    take_steps(search, trial, 25)
    room.ordered[1] = True
    assert orders(search) == [(trial, "end")]
    if is_restarted:  # by Ray Tune, which does not know better
        search.recovered(trial)
        assert orders(search) == [(trial, "end")], "not this one either"
        search.completed(trial)
    else:
        search.lost(trial)
    assert trial.state == "paused"
    assert observer.heard == [("paused", 1, 25, 20, room.reason)]
    assert start(search) is trial


def test_one_that_never_ran_waits_again_without_a_word(
    search: RunningSearch, room: Room, observer: Observer
) -> None:
    config = search.next_config()
    assert config is not None
    trial = search.trial(config)
    room.ordered[1] = False
    assert orders(search) == [(trial, "end")]
    search.completed(trial)
    assert (trial.state, observer.heard, trial.seconds) == ("waiting", [], 0.0)


def test_one_that_ends_in_spite_of_an_order_has_ended(search: RunningSearch, room: Room) -> None:
    first, second = start(search), start(search)
    for trial in (first, second):
        begin(search, trial)
        room.ordered[trial.number] = False
    assert len(orders(search)) == 2
    search.reported(first, {"outcome": {"evaluations": []}, "records": []})
    search.completed(first)
    search.judged(second, 1)
    search.completed(second)
    assert [trial.state for trial in search.trials] == ["finished", "stopped"]


def test_the_ledger_hears_what_could_run_and_what_would_be_lost(search: RunningSearch, room: Room) -> None:
    search.tell(in_use={}, asked_for={})
    first, second = start(search), start(search)
    for trial, step in ((first, 50), (second, 30)):
        begin(search, trial)
        take_steps(search, trial, step)
    search.tell(in_use={"a": 1}, asked_for={"a": 1})
    for trial in (first, second):
        search.reported(trial, {"outcome": {"evaluations": []}, "records": []})
        search.completed(trial)
    search.tell(in_use={}, asked_for={})
    assert [use.num_wanted for use in room.uses] == [2, 2, 1], "two at once, then one is left"
    assert (room.uses[1].in_use, room.uses[1].asked_for) == ({"a": 1}, {"a": 1})
    facts = room.uses[1].facts
    assert facts.progress == 0.3
    assert 0 <= facts.since_commit_s < 5
    assert 0 < facts.restart_cost_s < 5, "measured"


def test_a_process_is_kept_for_a_trial_that_comes_at_once(search: RunningSearch, room: Room) -> None:
    first, second = start(search), start(search)
    search.reported(first, {"outcome": {"evaluations": []}, "records": []})
    search.completed(first)
    assert search.keeps_process({"a": 1})
    room.num_seats = 1
    assert not search.keeps_process({"a": 1}), "its seat is gone"
    room.num_seats = 2
    assert start(search).number == 3
    search.reported(second, {"outcome": {"evaluations": []}, "records": []})
    search.completed(second)
    assert not search.keeps_process({"a": 1}), "none is left"


def test_paused_trials_end_with_the_search(search: RunningSearch, room: Room, observer: Observer) -> None:
    for reason, state in (("signal", "interrupted"), ("time", "stopped")):
        trial = start(search)
        begin(search, trial)
        room.ordered[trial.number] = False
        assert orders(search) == [(trial, "ask")]
        pause(search, trial, 5, 5)
        search.tick()
        assert observer.heard[-1] == ("tick", True)
        search._stop.reason = reason
        search.close()
        assert trial.state == state
        trial.state, search._stop.reason = "paused", None
