"""Orders and news between a rank's train function and its driver."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from eagleray.training import station as station_module
from eagleray.training.station import COMMIT, DATA, EVALUATE, STEP, Formation, Station


def order(number=1, rank=0):
    return Formation(number, rank, 2, "127.0.0.1:1", 0)


def test_an_order_is_waited_for_and_the_rank_says_that_it_is_ready():
    station = Station()
    got = []
    thread = threading.Thread(target=lambda: got.append(station.next_formation("10.0.0.1:7", 30, "d1")))
    thread.start()
    (event,) = station.news(5).events
    assert (event.kind, event.text, event.step, event.formation) == ("waiting", "10.0.0.1:7", 30, 0)
    assert event.digest == "d1"
    assert station.news(0).is_waiting
    station.form(order(4))
    thread.join(5)
    assert got == [order(4)]
    station.tell("training")
    assert [one.formation for one in station.news(0).events] == [4]


def test_an_order_that_comes_early_is_kept():
    station = Station()
    station.form(order(2))
    assert station.next_formation("", 0) == order(2)


def test_a_notice_is_for_the_formation_that_got_it():
    station = Station()
    assert station.wanted == 0
    station.notice(1)
    assert station.wanted == 1
    station.form(order())
    station.next_formation("", 0)
    assert station.wanted == 0


def test_news_say_what_is_done_for_how_long_and_the_longest_step():
    station = Station()
    assert station.news(0).step_s == 0
    for step in (1, 2, 3):
        station.begin_step(step)
        time.sleep(0.02 if step == 2 else 0)
    news = station.news(0)
    assert (news.step, news.doing, news.is_waiting) == (3, STEP, False)
    assert 0.02 <= news.step_s < 5
    assert news.idle_s < 5
    station.is_exchanging = lambda: True
    assert station.news(0).is_waiting


@pytest.fixture
def clock(monkeypatch):
    """Moves where the test moves it."""
    found = SimpleNamespace(now=100.0, time=time.time)
    found.monotonic = lambda: found.now
    monkeypatch.setattr(station_module, "time", found)
    return found


def test_evaluations_and_commits_are_no_part_of_a_step_and_measured_by_themselves(clock):
    station = Station()

    def take(step_s: float, *beside: tuple[str, float]) -> None:
        station.begin_step(1)
        clock.now += step_s
        for doing, seconds in beside:
            station.at(1, doing)
            clock.now += seconds
        station.at(1, DATA)
        clock.now += 1.0

    take(2.0)
    take(4.0, (EVALUATE, 30.0), (COMMIT, 5.0))
    take(3.0, (EVALUATE, 20.0))
    station.begin_step(4)
    news = station.news(0)
    assert (news.step_s, news.usual_s) == (5.0, 5.0), "four, and one for data"
    for doing, usual_s in ((EVALUATE, 30.0), (COMMIT, 5.0), (DATA, 5.0)):
        station.at(4, doing)
        assert station.news(0).usual_s == usual_s
    station.form(order(2))
    station.next_formation("", 4)
    station.at(4, EVALUATE)
    assert station.news(0).usual_s == 0, "another size evaluates at another pace"


def test_one_step_of_a_hundred_may_take_longer_and_is_not_counted(clock):
    station = Station()
    for step in range(102):
        station.begin_step(step)
        clock.now += 60.0 if step == 50 else 0.5
        assert station.news(0).step_s == (60.0 if 50 < step < 100 else 0.5 if step else 0)


def test_neither_steps_of_the_formation_before_nor_the_pause_after_it_count_as_steps():
    station = Station()
    station.begin_step(1)
    time.sleep(0.02)
    station.begin_step(2)
    station.form(order(2))
    station.next_formation("", 2)
    assert station.news(0).step_s == 0
    time.sleep(0.02)
    station.begin_step(3)
    assert station.news(0).step_s == 0


def test_another_train_function_finds_nothing_of_the_one_before():
    station = Station()
    station.form(order())
    station.notice(3)
    station.begin_step(9)
    station.begin_step(10)
    station.tell("over")
    station.begin()
    assert station.wanted == 0
    assert station.news(0).events == ()
    assert station.news(0).step_s == 0


def test_who_does_the_same_for_long_says_in_which_calls(monkeypatch):
    monkeypatch.setattr(station_module, "STUCK_S", 0.05)
    station, is_there, goes_on = Station(), threading.Event(), threading.Event()

    def hang():
        station.begin()
        station.begin_step(7)
        is_there.set()
        goes_on.wait(10)

    thread = threading.Thread(target=hang)
    thread.start()
    assert is_there.wait(5)
    assert station.news(0).where == ""
    time.sleep(0.1)
    where = station.news(0).where
    assert "hang (test_station.py:" in where
    assert where.startswith("wait (threading.py:"), "the innermost call comes first"
    goes_on.set()
    thread.join(5)
    assert station.news(0).where == "", "it has ended"
