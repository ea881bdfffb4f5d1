"""Who is given up when the driver itself stood still, as the run ends, and where all wait for each other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from eagleray.errors import PeerLost
from eagleray.training import listening_ray260, membership_ray260
from eagleray.training.station import COMMIT, EVALUATE
from unit.training.test_membership import play

__all__ = ["play"]


def test_a_driver_that_stood_still_asks_once_more_before_it_takes_its_workers_for_dead(play, monkeypatch):
    played = play(2)
    monkeypatch.setattr(listening_ray260, "time", membership_ray260.time)
    monkeypatch.setattr(listening_ray260, "ray", SimpleNamespace(wait=lambda asked, **_: ([], asked)))
    for name in "ab":
        played.member(name).pending = object()
    played.membership._turn()
    played.now += 60
    played.membership._turn()
    assert (played.ended, played.membership._phase) == ([], "training"), "their answers are not read yet"
    for _ in range(9):
        played.now += 1.0
        played.membership._turn()
    assert played.ended == ["a", "b"], "silent since"


def test_formations_have_the_time_that_a_driver_stood_still(play, monkeypatch):
    played = play(2, is_begun=False)
    monkeypatch.setattr(listening_ray260, "time", membership_ray260.time)
    monkeypatch.setattr(listening_ray260, "ray", SimpleNamespace(wait=lambda asked, **_: ([], asked)))
    for name in "ab":
        played.tell(name, "waiting")
    played.membership._turn()
    played.now += 60
    played.membership._turn()
    assert played.membership._phase == "forming", "they may have trained for long"


def test_those_who_wait_for_another_say_so_while_it_lasts(play, monkeypatch):
    played = play(2, minimum=2)
    monkeypatch.setattr(played.membership, "_ear", SimpleNamespace(hear=lambda _: [], was_deaf_s=lambda _: 0))
    played.membership._turn()
    assert played.seats.waited_s == []
    played.die("b")
    played.tell("a", "waiting")
    for _ in range(3):
        played.membership._turn()
        played.now += 30
    assert played.seats.waited_s == [0.0, 30.0, 60.0]


def end(played, name: str, error: str = "") -> None:
    """Its train function returns, or raises."""
    member = played.member(name)
    member.is_over, member.has_failed = True, bool(error)
    played.tick()


def test_a_loss_in_the_last_sum_starts_the_workers_again_where_some_are_over(play):
    played = play(3)
    end(played, "a")
    played.die("c")
    played.tick()
    assert str(played.membership.failure) == "a worker was lost as the run ended: its process ended"
    assert isinstance(played.membership.failure, PeerLost)


def test_who_waits_for_an_order_when_others_are_over_does_not_wait_for_ever(play):
    played = play(2)
    end(played, "a")
    played.tell("b", "lost", "waiting", step=40)  # the connection broke, and nobody died
    assert str(played.membership.failure) == "a worker was lost as the run ended: b:1"


def test_a_rank_0_that_is_lost_in_the_completion_is_not_left_out(play):
    played = play(2, minimum=2)
    end(played, "b")
    assert played.membership.failure is None, "rank 0 has more to do"
    played.die("a")
    played.tick()
    assert "as the run ended: its process ended" in str(played.membership.failure)
    assert played.said == [], "nobody waits for another"


def test_a_rank_0_that_stops_in_the_completion_is_found(play):
    played = play(2)
    end(played, "b")
    played.member("a").pending, played.member("a").asked_at = object(), played.now
    played.now += 9
    played.tick()
    assert played.ended == ["a"]
    assert "as the run ended: it has not answered for 9.0 s" in str(played.membership.failure)


def test_who_ends_after_it_has_returned_is_not_missed_but_rank_0(play):
    played = play(3)
    for name in "abc":
        end(played, name)
    played.die("b")
    played.tick()
    assert (played.membership.failure, played.ranks) == (None, "ac")
    played.die("a")
    played.tick()
    assert played.membership.failure is not None, "it has the outcome"


def test_where_one_has_raised_ray_train_hears_that(play):
    played = play(2)
    end(played, "a", error="TrainingError")
    played.tell("b", "lost", "waiting", step=40)
    assert played.membership.failure is None


VOTE = "wait for the step's vote"


def test_ranks_that_wait_for_each_other_form_anew(play):
    played = play(2)
    for name in "ab":
        played.tell(name, step=41, doing=VOTE, idle_s=0.0)
    played.now += 29.0
    played.tell("a", step=41, doing=VOTE, idle_s=29.0)
    played.tell("b", step=41, idle_s=1.0)
    played.now += 2.0
    played.tell("a", step=41, doing=VOTE, idle_s=31.0)
    played.tell("b", step=41, idle_s=3.0, is_waiting=True)
    assert played.membership._phase == "training", "one of them has not waited for so long"
    played.now += 31.0
    for name in "ab":
        played.tell(name, step=41, doing=VOTE, idle_s=60.0)
    assert played.membership._phase == "regrouping"
    assert played.ended == []
    for name in "ab":
        played.tell(name, "lost", "waiting", step=41)
    assert played.said == ["the workers form anew: all ranks wait for each other"]


@pytest.mark.parametrize("known", [{"step_s": 20.0}, {"step_s": 0.0}, {"usual_s": 0.0}])
def test_ranks_may_wait_where_steps_take_long_or_nobody_knows_how_long(play, known):
    played = play(2)
    for idle_s in (0.0, 90.0):
        played.now += idle_s
        for name in "ab":
            played.tell(name, step=41, doing=VOTE, idle_s=idle_s, **known)
    assert played.membership._phase == "training"


@pytest.mark.parametrize("doing", [EVALUATE, COMMIT])
def test_a_survivor_that_evaluates_or_commits_has_time_to_come_out(play, doing):
    played = play(3)
    played.tell("a", step=41)
    played.tell("c", step=41, doing=doing, is_waiting=False)
    played.die("b")
    played.now += 11
    played.tick()
    assert played.ended == ["a"], "it steps, and looks up soon"
    played.now += 100
    played.tick()
    assert played.ended == ["a"]
    played.now += 121
    played.tick()
    assert played.ended == ["a", "c"]
