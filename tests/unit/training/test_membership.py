"""Who trains with whom, decided from what workers tell; workers, seats and Ray are played."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from eagleray.errors import PeerLost
from eagleray.training import (
    formations_ray260,
    joiners_ray260,
    leaving,
    member_ray260,
    membership_ray260,
)
from eagleray.training.member_ray260 import Member
from eagleray.training.membership_ray260 import Membership
from eagleray.training.station import STEP, Event, News
from eagleray.training.stopping import Restarting, Suspended

RUN = Membership._run


class Actor:
    """Notes its orders."""

    def __init__(self, name: str):
        self.name, self.orders = name, []

    def __getattr__(self, order: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self.orders.append((order, *arguments)))

    def took(self, order: str) -> list[Any]:
        return [arguments for name, *arguments in self.orders if name == order]


class AtOnce:
    """A thread that has ended when it is started."""

    def __init__(self, target: Any, args: Any, daemon: bool):
        self.start = lambda: target(*args)


class Seats:
    """One for each worker; none beside, but those named in `free`."""

    def __init__(self) -> None:
        self.bundle = {"CPU": 1.0}
        self.closed: list[str] = []
        self.free: list[str] = []
        self.leave_by: float | None = None
        self.is_suspended, self.reason = False, ""
        self.waited_s: list[float] = []

    def tell(self, waited_s: float) -> None:
        self.waited_s.append(waited_s)

    def vacant(self, count: int) -> list[Any]:
        return self.free[:count]

    def close(self, seat: Any) -> None:
        seat.actor = None
        self.closed.append(seat.name)


def seat_of(name: str) -> Any:
    return SimpleNamespace(name=name, index=0, actor=name, rank=None, is_leaving=False)


class Play:
    """A membership without its thread, its workers by name."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        count: int,
        *,
        minimum: int = 1,
        max_failures: int = 3,
        is_begun: bool = True,
        **settings: Any,
    ):
        self.now, self.told, self.ended, self.seats = 100.0, [], [], Seats()
        self.parted: list[str] = []
        self.clock = 0.0
        clocks = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.clock, sleep=lambda _: None)
        for module in (membership_ray260, member_ray260, leaving, joiners_ray260, formations_ray260):
            monkeypatch.setattr(module, "time", clocks)
        monkeypatch.setattr(
            member_ray260, "end_process", lambda actor, node, pid: self.ended.append(actor.name)
        )
        monkeypatch.setattr(Membership, "_run", lambda self: None)
        monkeypatch.setattr(joiners_ray260, "threading", SimpleNamespace(Thread=AtOnce))
        self.membership = Membership(
            self.seats,  # type: ignore[arg-type]
            first_attempt=1,
            minimum=minimum,
            wanted=count,
            heartbeat_s=8.0,
            max_failures=max_failures,
            tell=self.told.append,
            part=lambda worker: self.parted.append(worker.actor.name),
            **settings,
        )
        self.workers = {name: self._worker(name) for name in "abcdefg"[:count]}
        seats = [seat_of(name) for name in self.workers]
        self.membership.begin(list(self.workers.values()), seats, lambda worker: None)
        if is_begun:
            for name in self.workers:
                self.tell(name, "waiting")
            self.train()

    @property
    def changes(self) -> list[Any]:
        return [news for news in self.told if not isinstance(news, dict)]

    @property
    def said(self) -> list[str]:
        return [news["text"] for news in self.told if isinstance(news, dict)]

    def _worker(self, name: str) -> Any:
        facts = SimpleNamespace(node_id=f"node-{name}", pid=ord(name), node_ip="127.0.0.1")
        return SimpleNamespace(actor=Actor(name), metadata=facts)

    def member(self, name: str) -> Member:
        everyone = [*self.membership.members, *self.membership._joiners.members]
        return next(member for member in everyone if member.worker is self.workers[name])

    def join(self, name: str) -> None:
        """A new worker is up and ready."""
        self.workers[name] = self._worker(name)
        self.membership._joiners.members.append(Member(self.workers[name], seat_of(name)))
        self.tell(name, "waiting")

    def allot(
        self, leaving: Iterable[str], *, in_s: float | None = 10.0, is_suspension: bool = False
    ) -> None:
        """These are to leave, and no others."""
        for member in [*self.membership.members, *self.membership._joiners.members]:
            member.seat.is_leaving = member.worker.actor.name in leaving
        self.seats.leave_by = None if in_s is None else self.now + in_s
        self.seats.is_suspended, self.seats.reason = is_suspension, "a service needs it"

    def tick(self) -> None:
        self.membership._decide()

    def yield_(self, step: int = 0) -> None:
        """All have stopped after the same step, and are committed."""
        for member in list(self.membership.members):
            if member in self.membership.members:
                self.tell(member.worker.actor.name, "yielded", "waiting", step=step)

    def tell(
        self,
        name: str,
        *kinds: Any,
        step: int = 0,
        doing: str = STEP,
        idle_s: float = 0.0,
        step_s: float = 0.1,
        usual_s: float | None = None,
        is_waiting: bool | None = None,
    ) -> None:
        events = tuple(Event(kind, 0, step, 0.0, "" if kind == "over" else f"{name}:1") for kind in kinds)
        is_waiting = doing != STEP if is_waiting is None else is_waiting
        news = News(events, step, doing, idle_s, is_waiting, step_s, step_s if usual_s is None else usual_s)
        self.membership._hear(self.member(name), news)
        self.tick()

    def die(self, name: str) -> None:
        self.membership._hear(self.member(name), "its process ended")
        self.membership._advance()

    def train(self, step: int = 0) -> None:
        """All of the formation take steps."""
        for member in list(self.membership.members):
            self.tell(member.worker.actor.name, "training", step=step)

    @property
    def ranks(self) -> str:
        return "".join(member.worker.actor.name for member in self.membership.members)


@pytest.fixture
def play(monkeypatch):
    return lambda count, **settings: Play(monkeypatch, count, **settings)


def test_workers_that_are_ready_form_a_group_at_rank_0s_address(play):
    played = play(2)
    formations = [played.workers[name].actor.took("form")[0][0] for name in "ab"]
    assert [(one.number, one.rank, one.world_size, one.address) for one in formations] == [
        (1, 0, 2, "a:1"),
        (1, 1, 2, "a:1"),
    ]
    assert [(change.number, change.num_before) for change in played.changes] == [(1, 0)]
    assert (played.membership._phase, played.ranks) == ("training", "ab")


def test_an_attempt_is_noted_before_its_workers_are_ordered(play):
    noted = []

    def note(number: int, size: int) -> None:
        orders = [len(worker.actor.took("form")) for worker in played.workers.values()]
        noted.append((number, size, orders, len(played.changes)))

    played = play(2, is_begun=False, note=note)
    for name in "ab":
        played.tell(name, "waiting")
    played.train()
    played.die("b")
    played.tell("a", "waiting", step=7)
    assert noted == [(1, 2, [0, 0], 0), (2, 1, [1, 1], 1)]


def test_survivors_of_a_death_are_woken_and_form_anew(play):
    played = play(3)
    played.clock = 128.0
    played.die("b")
    assert played.workers["a"].actor.took("break_groups")
    assert played.seats.closed == ["b"]
    played.clock = 130.0
    played.tell("a", "lost", "waiting", step=7)
    assert len(played.changes) == 1, "not before all are out"
    played.tell("c", "waiting", step=7)
    formation = played.workers["c"].actor.took("form")[-1][0]
    assert (formation.number, formation.rank, formation.num_before, formation.num_lost) == (2, 1, 3, 1)
    assert list(played.changes[-1].lost) == [1]
    times = [(change.left_at, change.time) for change in played.changes]
    assert times == [(None, 0.0), (128.0, 130.0)], (
        "given up when the loss was found, formed when all were out"
    )


def test_survivors_are_woken_before_the_seat_is_given_back(play):
    played = play(2)
    woken = []
    played.seats.close = lambda seat: woken.extend(played.workers["a"].actor.took("break_groups"))
    played.die("b")
    assert woken


def test_seats_are_given_back_at_the_end_without_the_lock(play):
    played = play(2)
    found: list[bool] = []

    def disband() -> None:
        thread = threading.Thread(target=lambda: found.append(played.membership.lock.acquire(timeout=0.2)))
        thread.start()
        thread.join()

    played.seats.disband = disband
    played.membership.end()
    assert found == [True]


def test_a_thread_that_fails_has_ray_train_begin_again(play, monkeypatch):
    played = play(2)
    monkeypatch.setattr(Membership, "_run", RUN)
    turns = iter([RuntimeError("the GCS is away"), None])

    def turn() -> None:
        if error := next(turns):
            raise error
        played.membership._thread = None

    monkeypatch.setattr(played.membership, "_turn", turn)
    played.membership._thread = threading.current_thread()
    played.membership._run()
    assert isinstance(played.membership.failure, PeerLost)
    assert "RuntimeError('the GCS is away')" in str(played.membership.failure)


def test_a_worker_that_tells_of_a_loss_first_breaks_the_others_too(play):
    played = play(3)
    played.tell("a", "lost", "waiting")
    assert played.workers["c"].actor.took("break_groups")
    assert not played.workers["a"].actor.took("break_groups"), "it is out"


def test_who_has_not_come_out_is_woken_again(play):
    played = play(2)
    played.die("b")
    played.now += 1
    played.tell("a")
    assert len(played.workers["a"].actor.took("break_groups")) == 2


def test_below_the_minimum_they_wait_for_another(play):
    played = play(2, minimum=2)
    played.die("b")
    played.tell("a", "waiting")
    assert len(played.changes) == 1
    assert played.said == [
        "a worker was lost (its process ended): 1 of 2 are left, and wait with their state for another"
    ]
    played.join("c")
    assert played.ranks == "ac"
    assert played.workers["c"].actor.took("form")


def test_fewer_are_wanted_the_last_leave_when_all_have_yielded(play):
    played = play(3)
    played.membership.resize(1)
    played.clock = 5.0
    played.tell("b", step=5)
    assert played.workers["a"].actor.took("notice") == [[1]]
    played.clock = 6.0
    for name in "cab":
        assert played.seats.closed == []
        played.tell(name, "yielded", "waiting", step=6)
    assert sorted(played.seats.closed) == ["b", "c"]
    assert played.ranks == "a"
    change = played.changes[-1]
    assert (change.num_before, change.lost, change.left_at, change.time) == (3, {}, 5.0, 6.0)


def test_a_worker_that_is_ready_joins_at_a_step_all_agree_on(play):
    played = play(1)
    played.membership.resize(2)
    played.join("b")
    assert played.workers["a"].actor.took("notice") == [], "the formation has hardly begun"
    played.now += 2
    played.tell("a", step=9)
    assert played.workers["a"].actor.took("notice") == [[1]]
    played.tell("a", "yielded", "waiting", step=10)
    assert played.ranks == "ab"


def test_a_silent_worker_is_given_up_and_what_it_did_last_is_said(play):
    played = play(2)
    played.tell("b", step=41)
    member = played.member("b")
    member.pending, member.asked_at = object(), played.now
    played.now += 9
    played.tell("a", step=41)
    assert played.ended == ["b"]
    (lost,) = played.membership._formations.lost.values()
    assert lost[1] == "it has not answered for 9.0 s; the last thing it did: step 41, forward and backward"


def test_a_worker_that_answers_but_hangs_in_a_step_is_given_up_and_who_waits_for_it_is_not(play):
    played = play(2)
    played.tell("a", step=41, doing="wait for the step's vote", idle_s=9.0)
    assert played.ended == []
    played.tell("b", step=41, idle_s=9.0)
    assert played.ended == ["b"]


def test_who_waits_for_one_that_hangs_has_time_to_come_out(play):
    played = play(3)
    played.now += 60
    played.tell("b", step=41, doing="wait for the step's vote", idle_s=9.0)
    played.tell("a", step=41, idle_s=9.0)
    assert played.ended == ["a"], "the formation has lasted for a minute, and is given up just now"


@pytest.mark.parametrize("doing", [STEP, "wait for data"])
def test_where_nobody_waits_for_another_all_are_slow_and_nobody_hangs(play, doing):
    played = play(2)
    for name in "ab":
        played.tell(name, step=41, doing=doing, idle_s=9.0, is_waiting=False)
    assert played.ended == []
    played.tell("b", step=41, doing="wait for the step's vote", idle_s=0.1)
    assert played.ended == ["a"], "now one waits for it"


def test_a_worker_that_is_alone_hangs_in_a_step_but_may_wait_for_data(play):
    played = play(1)
    played.tell("a", step=41, doing="wait for data", idle_s=9.0, is_waiting=False)
    assert played.ended == []
    played.tell("a", step=41, idle_s=9.0)
    assert played.ended == ["a"]


def test_where_nobody_is_left_ray_train_has_to_start_them(play):
    played = play(2)
    played.die("a")
    played.die("b")
    assert "all workers were lost" in str(played.membership.failure)


def test_losses_without_a_step_in_between_are_not_tried_for_ever(play):
    played = play(4, max_failures=1)
    played.die("d")
    for name in "abc":
        played.tell(name, "waiting", step=5)
    played.train(step=5)
    assert played.membership.failure is None
    played.die("c")
    for name in "ab":
        played.tell(name, "waiting", step=5)
    assert "2 losses without a step in between; its process ended" in str(played.membership.failure)


def test_formations_that_break_though_nobody_died_are_counted_and_said(play):
    played = play(2, max_failures=1)
    for name in "ab":
        played.tell(name, "lost", "waiting", step=5)
    assert played.said == ["the workers form anew: a:1"]
    assert played.membership.failure is None
    for name in "ab":
        played.tell(name, "lost", "waiting", step=5)
    assert str(played.membership.failure) == "2 losses without a step in between; a:1"


def test_a_formation_that_needs_longer_than_others_comes_about(play):
    played = play(2, is_begun=False)
    for name in "ab":
        played.tell(name, "waiting")
    for limit_s in (20, 40):
        played.now += limit_s + 1
        played.tick()
        assert played.membership._phase == "regrouping"
        played.now += 30
        played.tick()
        assert played.ended == [], "they read a checkpoint, and hear of it when they have"
        for name in "ab":
            played.tell(name, "lost", "waiting")
        assert played.membership._phase == "forming"
    played.now += 70
    played.train()
    assert (played.membership._phase, played.membership.failure) == ("training", None)
    assert played.said[0] == "the workers form anew: the ranks did not meet in 21 s"
    played.tell("a", "lost", "waiting")
    played.tell("b", "lost", "waiting")
    played.now += 21
    played.tick()
    assert played.membership._phase == "regrouping", "the next has as long as the first had"


@pytest.mark.parametrize("restarts", [False, True])
def test_a_formation_that_needs_long_is_no_failure(play, restarts):
    played = play(2, is_begun=False, max_failures=0, restarts=restarts)
    for name in "ab":
        played.tell(name, "waiting")
    for limit_s in (20, 40, 80):
        played.now += limit_s + 1
        played.tick()
        for name in "ab":
            played.tell(name, "lost", "waiting")
        assert (played.membership._phase, played.membership.failure) == ("forming", None)
    played.train(step=7)
    assert (played.ranks, played.membership.failure) == ("ab", None)
    for name in "ab":
        played.tell(name, "lost", "waiting", step=7)
    assert str(played.membership.failure).endswith("a:1"), "a break in training is one"


def test_a_formation_that_never_comes_about_ends_the_run(play):
    played = play(2, is_begun=False, max_failures=0)
    for name in "ab":
        played.tell(name, "waiting")
    for limit_s in (20, 40, 80, 160):
        assert played.membership.failure is None
        played.now += limit_s + 1
        played.tick()
        for name in "ab":
            played.tell(name, "lost", "waiting")
    assert str(played.membership.failure) == (
        "4 formations in a row did not come about; the ranks did not meet in 161 s"
    )


def test_who_is_lost_while_a_formation_takes_long_is_a_failure(play):
    played = play(2, is_begun=False, max_failures=0)
    for name in "ab":
        played.tell(name, "waiting")
    played.now += 21
    played.tick()
    played.die("b")
    played.tell("a", "lost", "waiting")
    assert str(played.membership.failure).endswith("without a step in between; its process ended")


def test_a_survivor_in_a_long_step_is_waited_for(play):
    played = play(3)
    for name in "ac":
        played.tell(name, step=41, idle_s=1.0, step_s=4.0 if name == "a" else 0.1)
    played.die("b")
    played.now += 11
    played.tick()
    assert played.ended == ["c"], "its steps are short"
    played.now += 10
    played.tick()
    assert played.ended == ["c", "a"], "five steps long"


def test_ray_train_counts_what_breaks_a_run_that_restarts(play):
    played = play(2, restarts=True)
    for name in "ab":
        played.tell(name, "lost", "waiting", step=5)
    assert str(played.membership.failure) == "a:1"
    assert isinstance(played.membership.failure, PeerLost)


def test_a_step_in_between_makes_a_loss_the_first_again(play):
    played = play(4, max_failures=1)
    for step, dead, left in ((5, "d", "abc"), (6, "c", "ab"), (7, "b", "a")):
        played.train(step=step)
        played.tell("a", step=step)
        played.die(dead)
        for name in left:
            played.tell(name, "waiting", step=step)
        assert played.membership.failure is None
    assert played.ranks == "a"


def test_who_has_to_leave_leaves_at_a_step_all_agree_on(play):
    played = play(3)
    played.allot("b")
    played.tell("c", step=7)
    assert played.workers["a"].actor.took("notice") == [[1]]
    assert played.said == ["giving 1 of 3 workers back: a service needs it"]
    assert played.seats.closed == []
    played.yield_(8)
    assert (played.ranks, played.seats.closed, played.parted) == ("ac", ["b"], [])
    assert (played.changes[-1].num_before, played.changes[-1].lost) == (3, {})
    played.train(9)
    assert len(played.workers["a"].actor.took("notice")) == 1, "once"


def test_records_of_a_rank_0_that_leaves_are_taken_first(play):
    played = play(2)
    played.allot("a")
    played.tell("a")
    played.yield_(8)
    assert (played.ranks, played.parted) == ("b", ["a"])


def test_who_leaves_and_who_comes_is_one_change(play):
    played = play(2)
    played.join("c")
    played.allot("b")
    played.tell("a")
    played.yield_(5)
    assert played.ranks == "ac"
    assert len(played.changes) == 2


def test_below_the_minimum_they_wait_for_who_takes_the_place_as_long_as_they_may(play):
    played = play(2, minimum=2)
    played.allot("b")
    played.now += 5
    played.tell("a")
    assert played.workers["a"].actor.took("notice") == []
    played.join("c")
    assert played.workers["a"].actor.took("notice") == [[1]]
    played.yield_(5)
    assert played.ranks == "ac"


def test_those_whose_steps_are_long_stop_earlier_to_leave_in_time(play):
    played = play(2, minimum=2)
    played.allot("b")
    played.now += 5
    played.tell("a", step_s=2.4)
    assert played.workers["a"].actor.took("notice") == [], "5 s are left"
    played.tell("a", step_s=2.6)
    assert played.workers["a"].actor.took("notice") == [[1]]


def test_one_joiner_of_two_that_are_needed_does_not_stop_those_who_train(play):
    played = play(3, minimum=3)
    played.membership.resize(4)
    played.allot("bc")
    played.now += 5
    played.join("d")
    assert played.workers["a"].actor.took("notice") == [], "two would be left, and wait"
    played.join("e")
    assert played.workers["a"].actor.took("notice") == [[1]]
    played.yield_(5)
    assert played.ranks == "ade"


def test_where_nobody_takes_the_place_in_time_the_others_wait_with_their_state(play):
    played = play(2, minimum=2)
    played.allot("b")
    played.now += 7.5
    played.tell("a")
    played.yield_(5)
    assert (played.seats.closed, played.membership.failure) == (["b"], None)
    assert len(played.changes) == 1
    played.join("c")
    assert played.ranks == "ac"


def test_a_notice_that_is_withdrawn_changes_nobody(play):
    played = play(2)
    played.allot("b")
    played.tell("a")
    played.allot("", in_s=None)
    played.yield_(5)
    assert (played.ranks, played.seats.closed) == ("ab", [])


def test_who_has_not_left_in_time_is_ended_and_named(play):
    played = play(2)
    played.allot("b")
    played.tell("a", step=7)
    played.now += 9
    played.tell("a", step=7, doing="wait for the step's vote")
    assert played.ended == []
    played.now += 0.6
    played.tell("a", step=7, doing="wait for the step's vote")
    assert played.ended == ["b"], "before the ledger does it, which takes any seat of the node"
    played.tell("a", "lost", "waiting", step=7)
    assert played.ranks == "a"
    (lost,) = played.changes[-1].lost.values()
    assert lost[1].startswith("it had not left its node in time (a service needs it)")


def test_a_loss_meanwhile_does_not_take_along_what_only_the_leavers_hold(play):
    played = play(3)
    played.allot("b")
    played.tell("a", step=7)
    played.die("c")
    played.tell("a", "lost", "waiting", step=7)
    played.tell("b", "lost", "waiting", step=8)
    assert played.ranks == "ab", "b has the newest state"
    played.train(9)
    played.tell("a", step=9)
    played.yield_(10)
    assert played.ranks == "a"


def test_a_suspended_run_commits_and_then_all_workers_end(play):
    played = play(2, minimum=2)
    played.allot("ab", is_suspension=True)
    played.tell("a", step=7)
    assert played.workers["a"].actor.took("notice") == [[1]]
    played.tell("a", "yielded", "waiting", step=8)
    assert played.seats.closed == []
    played.tell("b", "yielded", "waiting", step=8)
    assert (played.seats.closed, played.parted) == (["a", "b"], ["a"])
    failure = played.membership.failure
    assert isinstance(failure, Suspended)
    assert (failure.reason, failure.step, failure.is_forced) == ("a service needs it", 8, False)


def test_a_suspended_run_that_lost_a_worker_commits_what_the_others_hold(play):
    played = play(2, minimum=2)
    played.allot("ab", is_suspension=True)
    played.tell("a", step=7)
    played.die("b")
    played.tell("a", "lost", "waiting", step=7)
    assert played.ranks == "a", "below the minimum, for as long as it takes to commit"
    played.train(8)
    played.tell("a", step=8)
    played.yield_(9)
    assert isinstance(played.membership.failure, Suspended)
    assert not played.membership.failure.is_forced


def test_a_suspended_run_that_does_not_stop_is_ended_and_what_it_loses_is_known(play):
    played = play(2)
    played.allot("ab", is_suspension=True)
    played.tell("a", step=7)
    played.now += 10
    played.tell("b", step=7, doing="wait for the step's vote")
    assert sorted(played.ended) == ["a", "b"]
    assert isinstance(played.membership.failure, Suspended)
    assert (played.membership.failure.is_forced, played.membership.failure.num_workers) == (True, 2)


def test_workers_that_have_not_trained_yet_are_suspended_at_once(play):
    played = play(2, is_begun=False)
    played.allot("ab", is_suspension=True)
    played.tick()
    assert isinstance(played.membership.failure, Suspended)
    assert played.seats.closed == ["a", "b"]


def test_a_leaver_that_has_not_trained_yet_is_in_no_formation(play):
    played = play(2, is_begun=False)
    played.allot("b")
    for name in "ab":
        played.tell(name, "waiting")
    assert (played.ranks, played.seats.closed) == ("a", ["b"])


def test_a_worker_that_reads_its_data_may_be_silent_for_longer(play):
    played = play(2, is_begun=False)
    played.tell("a", "waiting")
    for name in "ab":
        played.member(name).pending, played.member(name).asked_at = object(), played.now
    played.now += 9
    played.tick()
    assert played.ended == ["a"], "it had read its data"
    played.now += 52
    played.tick()
    assert played.ended == ["a", "b"]


def test_reading_the_data_may_take_as_long_as_it_takes(play):
    played = play(2, is_begun=False)
    played.now += 60
    played.tick()
    assert played.ended == []


def test_a_joiner_that_fails_or_is_silent_is_given_up_and_the_next_waits_a_little_longer_each_time(play):
    played = play(1)
    asked = []
    played.seats.vacant = lambda count: asked.append(played.now) or []
    played.membership.resize(2)
    for wait_s in (1, 2, 4):
        played.join("b")
        played.member("b").is_ready = False
        played.tell("b", "over", step=0)
        assert (len(played.membership._joiners), played.seats.closed.pop(), played.ended.pop()) == (
            0,
            "b",
            "b",
        )
        assert f"its train function has ended; the last thing it did: step 0, {STEP}" in played.said[-1]
        assert played.said[-1].endswith(f"tried again after {wait_s} s")
        asked.clear()
        played.now += wait_s - 0.1
        played.tick()
        assert asked == []
        played.now += 0.1
        played.tick()
        assert asked == [played.now]
    played.join("b")
    member = played.member("b")
    member.pending, member.asked_at = object(), played.now
    played.now += 9
    played.tick()
    assert played.ended == ["b"]
    assert "it has not answered for 9.0 s" in played.said[-1]
    assert played.said[-1].endswith("tried again after 1 s"), "it had been ready"


def test_a_spare_takes_the_place_of_a_worker_that_is_lost(play):
    played = play(2, spares=1)
    played.join("c")
    played.now += 5
    played.tell("a", step=7)
    assert played.workers["a"].actor.took("notice") == [], "it waits"
    played.die("b")
    played.tell("a", "lost", "waiting", step=7)
    assert played.ranks == "ac"


def test_as_many_spares_are_fetched_as_are_wanted(play):
    played = play(2, spares=2)
    asked = []
    played.seats.vacant = lambda count: asked.append(count) or []
    played.tell("a")
    played.join("c")
    assert asked[0] == 2
    assert asked[-1] == 1


def test_a_run_that_restarts_stops_at_a_step_commits_and_is_started_anew(play):
    played = play(2, restarts=True)
    played.allot("b")
    played.tell("a", step=7)
    played.yield_(8)
    assert isinstance(played.membership.failure, Restarting)
    assert (played.seats.closed, len(played.changes)) == (["b"], 1)


def test_a_run_that_restarts_grows_when_there_are_seats(play):
    played = play(1, restarts=True)
    played.membership.resize(2)
    played.seats.free = ["new"]
    played.now += 2
    played.tell("a", step=7)
    assert played.workers["a"].actor.took("notice") == [[1]]


def test_a_run_that_restarts_leaves_a_loss_to_ray_train(play):
    played = play(2, restarts=True)
    played.die("b")
    assert played.workers["a"].actor.took("break_groups")
    assert (played.ranks, played.membership.failure, played.seats.closed) == ("ab", None, [])
