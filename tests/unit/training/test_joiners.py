"""Workers on their way into a formation: their processes start in threads; seats and Ray are played."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError

from eagleray.training import joiners_ray260
from eagleray.training.joiners_ray260 import Joiners
from eagleray.training.seat_ray260 import Seat
from eagleray.training.station import Event, News
from support.pretend_ledger import until


class Seats:
    """Free seats by name; a worker is up when `up` is set, or ends before."""

    def __init__(self, *names: str) -> None:
        self.bundle = {"CPU": 1.0}
        self.free = [Seat(name, 0, is_own=True) for name in names]  # type: ignore[arg-type]
        self.up, self.dead = threading.Event(), set[str]()
        self.closed: list[str] = []
        self.not_launched = set[str]()

    def vacant(self, count: int) -> list[Any]:
        return [seat for seat in self.free if seat.actor is None][:count]

    def spawn(self, seat: Any) -> Any:
        remote = SimpleNamespace(remote=lambda: seat.group)
        seat.actor = SimpleNamespace(name=seat.group, get_metadata=remote)
        return seat.actor

    def close(self, seat: Any) -> None:
        seat.actor = None
        self.closed.append(seat.group)


@pytest.fixture
def play(monkeypatch):
    def start(*names: str, said: list[str] | None = None) -> tuple[Joiners, Seats, list[str]]:
        seats, launched = Seats(*names), []

        def get(name: str, timeout: float | None = None) -> Any:
            if not seats.up.wait(10 if timeout is None else min(10, timeout)):
                raise GetTimeoutError
            if name in seats.dead:
                raise ActorDiedError()
            return SimpleNamespace(node_id="n", node_ip="127.0.0.1", pid=1)

        monkeypatch.setattr(joiners_ray260, "ray", SimpleNamespace(get=get))
        say = [].append if said is None else said.append
        joiners = Joiners(seats, threading.RLock(), say)  # type: ignore[arg-type]

        def launch(worker: Any) -> None:
            if worker.actor.name in seats.not_launched:
                raise ValueError("no context for it")
            launched.append(worker.actor.name)

        joiners.open(launch)
        return joiners, seats, launched

    return start


def test_who_is_up_is_launched_and_ready_when_it_says_so(play):
    joiners, seats, launched = play("a", "b", "c")
    joiners.fetch(2)
    until(lambda: len(joiners) == 2)
    assert joiners.members == []
    seats.up.set()
    until(lambda: len(joiners.members) == 2)
    assert (len(joiners), sorted(launched), joiners.ready) == (2, ["a", "b"], [])
    first = joiners.members[0]
    first.is_ready = True
    assert joiners.ready == [first]
    joiners.leave([first])
    assert len(joiners) == 1


def test_a_seat_that_was_given_back_has_nobody_ready(play):
    joiners, seats, _ = play("a")
    seats.up.set()
    joiners.fetch(1)
    until(lambda: joiners.members)
    joiners.members[0].is_ready = True
    seats.close(seats.free[0])
    assert joiners.ready == []


def test_a_worker_that_ends_while_it_starts_leaves_its_seat_to_another(play):
    joiners, seats, launched = play("a")
    seats.dead.add("a")
    joiners.fetch(1)
    until(lambda: len(joiners) == 1)
    seats.up.set()
    until(lambda: len(joiners) == 0)
    assert (seats.closed, launched) == (["a"], [])
    assert seats.vacant(1) == seats.free


def test_a_worker_that_cannot_be_launched_is_said_and_holds_no_place(play):
    said: list[str] = []
    joiners, seats, _ = play("a", said=said)
    seats.not_launched.add("a")
    joiners.fetch(1)
    until(lambda: len(joiners) == 1)
    seats.up.set()
    until(lambda: len(joiners) == 0)
    assert said == ["a worker that was to join was lost (no context for it); tried again after 1 s"]
    joiners.fetch(1)
    assert not joiners._is_asking, "not at once"


def test_a_worker_that_does_not_start_is_given_up_and_said(play, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(joiners_ray260, "START_LIMIT_S", 0.05)
    joiners, seats, _ = play("a", said=said)
    joiners.fetch(1)
    until(lambda: said)
    assert said == ["a worker that was to join was lost (it was not up within 0 s); tried again after 1 s"]
    assert (len(joiners), seats.closed) == (0, ["a"])


def test_a_worker_whose_seat_is_given_back_while_it_starts_has_not_failed(play):
    said: list[str] = []
    joiners, seats, _ = play("a", said=said)
    seats.dead.add("a")
    joiners.fetch(1)
    until(lambda: len(joiners) == 1)
    seats.close(seats.free[0])
    seats.up.set()
    until(lambda: len(joiners) == 0)
    assert said == []
    seats.up.clear()
    joiners.fetch(1)
    until(lambda: len(joiners) == 1)
    seats.up.set()


def test_at_the_end_those_on_their_way_are_ended_too(play):
    joiners, seats, _ = play("a")
    joiners.fetch(1)
    until(lambda: len(joiners) == 1)
    joiners.close()
    assert (len(joiners), seats.closed) == (0, ["a"])
    seats.up.set()
    until(lambda: seats.closed == ["a", "a"])
    assert joiners.members == []


def test_seats_that_take_long_to_be_asked_for_hold_nobody_up_and_come_too_late_for_others(play):
    joiners, seats, launched = play("a")
    is_back, vacant, asked = threading.Event(), seats.vacant, []

    def slowly(count: int) -> list[Any]:
        asked.append(count)
        is_back.wait(10)
        return vacant(count)

    seats.vacant = slowly
    joiners.fetch(1)
    until(lambda: asked)
    joiners.fetch(1)
    assert (asked, len(joiners)) == ([1], 0), "the GCS is away: once"
    joiners.close()
    joiners.open(lambda worker: launched.append("again"))
    is_back.set()
    until(lambda: not joiners._is_asking)
    assert (len(joiners), seats.free[0].actor) == (0, None), "whom it was asked for is over"
    joiners.fetch(1)
    until(lambda: len(joiners) == 1)
    seats.up.set()
    until(lambda: launched == ["again"])


def test_seats_that_cannot_be_asked_for_are_asked_for_again_later(play):
    said: list[str] = []
    joiners, seats, _ = play("a", said=said)

    def fail(count: int) -> list[Any]:
        raise RuntimeError("the GCS is away")

    seats.vacant = fail
    joiners.fetch(1)
    until(lambda: not joiners._is_asking)
    assert said == ["seats cannot be asked for (the GCS is away); tried again after 1 s"]


def test_a_joiner_whose_node_has_other_data_is_given_up_and_the_next_is_tried_later_each_time(play):
    said: list[str] = []
    joiners, seats, _ = play("a", said=said)
    seats.up.set()
    joiners.leave([SimpleNamespace(data_digest="1" * 64)])  # the formation's
    for wait_s in (1, 2):
        joiners._not_before = 0.0
        joiners.fetch(1)
        until(lambda: joiners.members)
        (member,) = joiners.members
        member.take(News((Event("waiting", 0, 0, 0.0, "a:1", "2" * 64),), 0, "wait", 0.0, True, 0.0, 0.0))
        assert joiners.ready == [], "it would end the run for all"
        [(lost, reason)] = joiners.hopeless(8.0)
        joiners.lose(lost, reason)
        assert said[-1] == (
            "a worker that was to join was lost (the data on 127.0.0.1 has digest 222222222222, the "
            f"run's has 111111111111; put the same there); tried again after {wait_s} s"
        )
    joiners._not_before = 0.0
    joiners.fetch(1)
    until(lambda: joiners.members)
    (member,) = joiners.members
    member.take(News((Event("waiting", 0, 0, 0.0, "a:1", "1" * 64),), 0, "wait", 0.0, True, 0.0, 0.0))
    assert (joiners.ready, joiners.hopeless(8.0)) == ([member], [])
