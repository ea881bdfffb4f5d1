"""When a rank that answers is taken to hang: by how long what it does took before, and who waits for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from eagleray.training import member_ray260
from eagleray.training.agreement import Agreement
from eagleray.training.member_ray260 import AWAITED_S, STORAGE_S, Member
from eagleray.training.station import COMMIT, DATA, END, EVALUATE, STEP, UPDATE, News

HEARTBEAT_S = 8.0
VOTE = "wait for the step's vote"


class Clock:
    """Stands still but where the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(member_ray260, "time", found)
    return found


def member(doing: str, *, idle_s: float, usual_s: float = 0.1, is_waiting: bool = False) -> Member:
    """A worker that has told this just now."""
    worker: Any = SimpleNamespace()
    found = Member(worker, worker, asked_at=0.0)
    found.take(News((), 41, doing, idle_s, is_waiting, 0.1, usual_s))
    return found


def waiting(clock: Clock, for_s: float) -> Member:
    """A worker that has said for so long that it waits."""
    clock.now -= for_s
    found = member(VOTE, idle_s=0.0, is_waiting=True)
    clock.now += for_s
    found.take(News((), 41, VOTE, for_s, True, 0.1, 0.1))
    return found


@pytest.mark.parametrize(
    ("doing", "usual_s", "limit_s"),
    [
        *((doing, 0.1, HEARTBEAT_S) for doing in (STEP, UPDATE, DATA, EVALUATE)),
        (STEP, 4.0, 20.0),
        (EVALUATE, 30.0, 150.0),
    ],
)
def test_a_rank_that_is_waited_for_hangs_after_five_times_what_that_took_before(
    clock: Clock, doing: str, usual_s: float, limit_s: float
) -> None:
    others = [waiting(clock, 1.0)]
    slow, hung = (member(doing, idle_s=limit_s + more_s, usual_s=usual_s) for more_s in (-0.1, 0.1))
    assert slow.hung_s(HEARTBEAT_S, others) is None
    assert hung.hung_s(HEARTBEAT_S, others) == limit_s + 0.1


@pytest.mark.parametrize(
    ("doing", "usual_s", "limit_s"),
    [
        *((doing, 0.0, AWAITED_S) for doing in (STEP, UPDATE, DATA, EVALUATE, END)),
        (COMMIT, 0.0, STORAGE_S),
        (COMMIT, 0.1, STORAGE_S),
    ],
)
def test_where_nobody_knows_how_long_it_takes_the_others_wait_for_minutes(
    clock: Clock, doing: str, usual_s: float, limit_s: float
) -> None:
    one = member(doing, idle_s=900.0, usual_s=usual_s)
    assert one.hung_s(HEARTBEAT_S, [waiting(clock, limit_s - 1)]) is None, (
        "it is slow, and they were not long"
    )
    assert one.hung_s(HEARTBEAT_S, [waiting(clock, limit_s + 1), waiting(clock, 0.0)]) == 900.0


def test_a_commit_that_waits_for_a_storage_which_was_quick_before_is_no_hang_within_seconds(
    clock: Clock,
) -> None:
    assert member(COMMIT, idle_s=60.0, usual_s=0.05).hung_s(HEARTBEAT_S, [waiting(clock, 60.0)]) is None


@pytest.mark.parametrize(
    ("doing", "is_hung"), [(STEP, True), (UPDATE, True), (DATA, False), (EVALUATE, False)]
)
def test_a_rank_that_is_alone_hangs_in_its_steps_only(clock: Clock, doing: str, is_hung: bool) -> None:
    assert (member(doing, idle_s=9.0).hung_s(HEARTBEAT_S, []) is not None) == is_hung
    assert member(doing, idle_s=9000.0, usual_s=0.0).hung_s(HEARTBEAT_S, []) is None, "its first steps"


def test_who_waits_again_and_again_has_not_waited_all_the_time(clock: Clock) -> None:
    other = waiting(clock, 300.0)
    assert other.waited_s == 300.0
    other.take(News((), 42, VOTE, 0.2, True, 0.1, 0.1))
    assert other.waited_s == 0.2, "of the next step"
    other.take(News((), 42, STEP, 0.0, False, 0.1, 0.1))
    assert other.waited_s == 0.0


def test_who_waits_for_a_sum_of_all_says_so() -> None:
    pair: Any = SimpleNamespace(rank=0, world_size=2)
    agreement, seen = Agreement(pair), []
    work = SimpleNamespace(wait=lambda _limit: seen.append(agreement.is_waiting))
    agreement._attempt(lambda: work, "summing")
    assert (seen, agreement.is_waiting) == ([True], False)
