"""A driver that stood still does not take its workers for dead; Ray and the clock are played."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayError

from eagleray.training import listening_ray260, member_ray260
from eagleray.training.listening_ray260 import DEAF_S, Ear
from eagleray.training.member_ray260 import Member
from eagleray.training.station import News

HEARTBEAT_S = 8.0


class Play:
    """A clock that a wait moves on; `answers` are those that are there, by worker."""

    def __init__(self) -> None:
        self.now, self.answers, self.num_asked = 1000.0, dict[str, Any](), 0

    def get(self, reference: str) -> Any:
        answer = self.answers[reference.partition("?")[0]]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def monotonic(self) -> float:
        return self.now

    def wait(self, references: list[Any], *, num_returns: int = 1, timeout: float) -> tuple[list[Any], None]:
        self.now += timeout
        return [one for one in references if one.partition("?")[0] in self.answers][:num_returns], None

    def member(self, name: str) -> Member:
        def remote() -> str:
            self.num_asked += 1
            return f"{name}?{self.num_asked}"

        worker: Any = SimpleNamespace(actor=SimpleNamespace(news=SimpleNamespace(remote=remote)))
        return Member(worker, worker, is_prepared=True, asked_at=self.now)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    found = Play()
    monkeypatch.setattr(listening_ray260, "ray", found)
    for module in (listening_ray260, member_ray260):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=found.monotonic))
    return found


def test_who_answers_is_heard_and_asked_again(play: Play) -> None:
    ear, members = Ear(), [play.member(name) for name in "ab"]
    play.answers = {"b": "news"}
    assert ear.hear(members) == [(members[1], "news")]
    ear.hear(members)
    assert play.num_asked == 3, "the other one's answer is on its way"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ActorDiedError(), "its process ended"),
        (RayError("the task\nis lost"), "is lost"),
    ],
)
def test_who_cannot_answer_any_more_is_heard_of(play: Play, error: Exception, said: str) -> None:
    play.answers = {"a": error}
    member = play.member("a")
    assert [answer for _, answer in Ear().hear([member])] == [said]
    assert member.pending is None


def test_a_driver_that_stood_still_gives_its_workers_time_to_be_heard(play: Play) -> None:
    ear, members = Ear(), [play.member(name) for name in "ab"]
    for _ in range(3):
        ear.hear(members)
        assert ear.was_deaf_s(members) == 0
    play.now += 60  # SIGSTOP, or its container is frozen
    ear.hear(members)
    assert ear.was_deaf_s(members) == pytest.approx(60 - DEAF_S, abs=0.1)
    assert not any(member.is_silent(HEARTBEAT_S) for member in members)
    play.answers = {"a": "news"}  # which is read out of the socket only now
    assert len(ear.hear(members)) == 1
    for _ in range(int(HEARTBEAT_S / 0.05)):
        ear.hear(members[1:])
        ear.was_deaf_s(members[1:])
    assert [member.is_silent(HEARTBEAT_S) for member in members] == [False, True], "it is silent by itself"


def test_a_driver_that_is_slow_all_the_time_finds_who_is_silent(play: Play) -> None:
    ear, member = Ear(), play.member("a")
    num_turns = 0
    while not member.is_silent(HEARTBEAT_S):
        ear.hear([member])
        ear.was_deaf_s([member])
        play.now += 3.0
        num_turns += 1
    assert 6 <= num_turns < 12


def test_whom_a_deaf_driver_has_as_waiting_has_not_waited_for_so_long(play: Play) -> None:
    ear, member = Ear(), play.member("a")
    member.take(News((), 7, "wait", 0.0, True, 0.1, 0.1))
    ear.was_deaf_s([member])
    play.now += 200.0
    ear.was_deaf_s([member])
    member.take(News((), 7, "wait", 200.0, True, 0.1, 0.1))
    assert member.waited_s == DEAF_S
