"""Where the time of a run went: against runs whose truth is known, told as a driver hears of them."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eagleray.workflows.goodput import CAUSES, MEANINGS, TimeAccount, in_words
from eagleray.workflows.report import Account
from unit.workflows.test_report import at, formed, phase, workers

DRAIN_S = 0.5
STEP_S = 0.05


class Played:
    """A run that spends time on known things, and tells of them late, as a real one does."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.now, self.truth = 1000.0, Counter()
        self.account = Account(marks={"submitted_at": 1000.0})
        self.records, self.newest, self.drained_at = [], None, 0.0
        self.news = []
        self.step = self.reached = self.committed = self.number = 0
        self.size = 3
        self.has_trained = False

    def spend(self, kind, seconds):
        self.truth[kind] += seconds
        self.now += seconds

    def some(self, most=2.0):
        return self.random.uniform(0.001, most)

    # As the ranks and the driver tell

    def put(self, record):
        if self.newest is not None:
            self.records.append(self.newest)
            self.newest = None
        self.records.append(record)

    def drain(self):
        """The driver's news may come before what rank 0 told earlier, never after a formation's own."""
        for tell in self.news:
            tell()
        self.news = []
        if self.newest is not None:
            self.records.append(self.newest)
            self.newest = None
        for record in self.records:
            self.account.take(record)
        self.records, self.drained_at = [], self.now

    # What happens

    def start(self):
        for mark, kind in (("submitted", "start"), ("driver", "start"), ("nodes", "wait")):
            self.spend(kind, self.some(5.0))
            self.account.marks[mark] = self.now
        self.form("start")

    def form(self, before, *, num_before=0, lost=(), left_at=None):
        """The rest of the way to a formation, its order, and the way from there."""
        self.spend(before, self.some())
        self.number += 1
        told = {rank: (workers("a", "b", "c", "d")[rank], "gone") for rank in lost}
        change = formed(self.number, *"abcd"[: self.size], num_before=num_before, lost=told, time=self.now)

        def tell():
            if lost:
                self.account.lost(sorted(lost), "gone", left_at, num_left=num_before - len(lost))
            self.account.changed(change)

        self.news.append(tell)
        self.spend("restore" if self.has_trained else "start", self.some())
        self.put(phase(self.step, self.now, attempt=self.number))
        self.has_trained = True

    def train(self, count):
        for _ in range(count):
            self.spend(
                "redo" if self.step < self.reached else "useful", STEP_S * self.random.uniform(0.7, 1.3)
            )
            self.step += 1
            self.reached = max(self.reached, self.step)
            self.newest = at(self.step, self.now)
            if self.now - self.drained_at >= DRAIN_S:
                self.drain()

    def commit(self, is_told_late=False):
        blocked_s = self.some(0.2)
        self.spend("checkpoint", blocked_s)
        self.committed = step = self.step
        if is_told_late:
            self.train(2)
        record = {"kind": "commit", "time": self.now, "step": step, "seconds": 1.0, "blocked_s": blocked_s}
        self.put(record)

    def evaluate(self):
        seconds = self.some(0.3)
        self.spend("rest", seconds)
        record = {"kind": "evaluation", "time": self.now, "step": self.step, "seconds": seconds}
        self.put(record)

    def resize(self):
        """Planned: all stop after a step and commit."""
        left_at, before = self.now, self.size
        self.train(2)
        self.commit()
        self.size = self.random.randint(1, 4)
        self.form("reschedule", num_before=before, left_at=left_at)

    def lose(self):
        """Survivors go on with what they hold."""
        before, self.size = max(2, self.size), max(1, self.size - 1)
        self.spend("detect", self.some())
        self.form("reschedule", num_before=before, lost=[1], left_at=self.now)

    def restart(self):
        """All are lost, and start again from the last commit."""
        self.spend("detect", self.some())
        noticed_at = self.now
        self.news.append(lambda: self.account.lost([0], "gone", noticed_at))
        self.step = self.committed
        self.form("reschedule")

    def suspend(self):
        self.train(1)
        self.commit()
        self.spend("reschedule", self.some(0.5))
        began_at = self.now
        self.news.append(lambda: self.account.suspended("others need its nodes", began_at))
        self.spend("wait", self.some(20.0))
        ended_at = self.now
        self.news.append(lambda: self.account.resumed(ended_at))
        self.form("reschedule")

    def end(self):
        self.drain()
        self.spend("rest", self.some())
        self.account.ended(self.now)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("train"), st.integers(1, 60)),
        st.tuples(st.just("commit"), st.booleans()),
        *(st.tuples(st.just(name)) for name in ("evaluate", "resize", "lose", "restart", "suspend", "drain")),
    ),
    max_size=40,
)


@given(actions=ACTIONS, seed=st.integers(0, 1 << 32))
@settings(max_examples=150, deadline=None)
def test_every_part_is_what_the_run_really_spent(actions, seed):
    run = Played(seed)
    run.start()
    for name, *arguments in actions:
        getattr(run, name)(*arguments)
    run.end()
    found = run.account.goodput()
    wall_s = run.now - 1000.0
    assert found.wall_s == pytest.approx(wall_s)
    assert found.useful_s + sum(found.lost_s.values()) + found.rest_s == pytest.approx(wall_s)
    # A checkpoint that is told late may have been paid by steps of the other kind, useful or redone.
    off = pytest.approx
    assert found.lost_s["checkpoint"] == off(run.truth["checkpoint"], abs=0.01 * wall_s)
    for cause in ("start", "wait", "detect", "reschedule", "restore"):
        assert found.lost_s[cause] == off(run.truth[cause], abs=0.01 * wall_s), cause
    assert found.useful_s == off(run.truth["useful"], abs=0.02 * wall_s)
    assert found.lost_s["redo"] == off(run.truth["redo"], abs=0.02 * wall_s)
    _is_a_line(run.account.time.closed(run.now).stretches, 1000.0, run.now)


CALLS = st.lists(
    st.tuples(
        st.sampled_from(
            ["passed", "noticed", "ordered", "suspended", "resumed", "trains", "at", "held_up", "begin"]
        ),
        st.floats(0, 100),
        st.integers(0, 50),
        st.integers(0, 5),
    )
)


TWICE = [("trains", 0.0, 1, 0), ("at", 1.0, 2, 0), ("held_up", 1.0, 0, 0), ("held_up", 1.0, 1, 0)]
"""A second that is there once, in this formation and in all."""


@given(calls=CALLS, end=st.floats(0, 200))
@example(calls=TWICE, end=0.0)
@settings(max_examples=200, deadline=None)
def test_whatever_is_told_no_part_is_negative_and_they_add_up(calls, end):
    account = TimeAccount()
    for name, time, step, number in calls:
        arguments = {
            "passed": (time, "wait"), "ordered": (time, number), "trains": (time, step, number),
            "at": (time, step), "held_up": (step, time, "checkpoint"),
        }.get(name, (time,))  # fmt: skip
        getattr(account, name)(*arguments)
    found = account.goodput(end)
    parts = [found.useful_s, *found.lost_s.values(), found.rest_s]
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(found.wall_s)
    assert 0 <= found.ratio <= 1 + 1e-9
    stretches = account.closed(end).stretches
    if stretches:
        _is_a_line(stretches, stretches[0].begin, stretches[0].begin + found.wall_s)


def _is_a_line(stretches, begin, end):
    assert stretches[0].begin == pytest.approx(begin)
    assert stretches[-1].end == pytest.approx(end)
    for one, following in itertools.pairwise(stretches):
        assert one.begin < one.end == following.begin
        assert one.kind != following.kind


def test_steps_that_are_trained_again_are_not_useful():
    account = TimeAccount()
    account.begin(0.0)
    account.ordered(1.0, 1)
    account.trains(2.0, 0, 1)
    account.at(12.0, 100)
    account.noticed(13.0)
    account.ordered(15.0, 2)
    account.trains(16.0, 60, 2)
    account.at(22.0, 120)
    found = account.goodput(23.0)
    assert found.lost_s == pytest.approx(
        {"start": 2, "wait": 0, "detect": 1, "reschedule": 2, "restore": 1, "redo": 4, "checkpoint": 0}
    )
    assert (found.useful_s, found.rest_s, found.wall_s) == pytest.approx((12, 1, 23))
    assert found.ratio == pytest.approx(12 / 23)
    assert [stretch.kind for stretch in account.closed(23.0).stretches] == [
        "start", "useful", "detect", "reschedule", "restore", "redo", "useful", "rest",
    ]  # fmt: skip


def test_steps_that_an_earlier_driver_took_are_redone_too():
    account = TimeAccount(reached=50)
    account.begin(0.0)
    account.ordered(0.0, 4)
    account.trains(0.0, 40, 4)
    account.at(10.0, 60)
    found = account.goodput()
    assert (found.useful_s, found.lost_s["redo"]) == pytest.approx((5, 5))


def test_a_second_loss_on_the_way_back_from_one():
    account = TimeAccount()
    account.begin(0.0)
    account.ordered(0.0, 1)
    account.trains(0.0, 0, 1)
    account.at(10.0, 10)
    for noticed_at, ordered_at, number in ((11.0, 12.0, 2), (14.0, 15.0, 3)):
        account.noticed(noticed_at)
        account.ordered(ordered_at, number)
    account.trains(17.0, 10, 3)
    found = account.goodput().lost_s
    assert (found["detect"], found["reschedule"], found["restore"]) == (1, 2, 4)


def test_what_a_formation_tells_after_the_driver_has_left_it_is_in_its_place():
    account = TimeAccount()
    account.begin(0.0)
    account.ordered(1.0, 1)
    account.noticed(6.0)
    account.ordered(7.0, 2)
    account.trains(2.0, 0, 1)
    account.at(5.0, 30)
    account.trains(8.0, 30, 2)
    account.at(9.0, 40)
    found = account.goodput()
    assert found.useful_s == 4
    assert found.lost_s | {"start": 2, "detect": 1, "reschedule": 1, "restore": 1} == found.lost_s


def test_clocks_that_differ_cost_no_time():
    account = TimeAccount()
    account.begin(10.0)
    account.ordered(11.0, 1)
    account.trains(10.5, 0, 1)
    account.at(20.0, 5)
    account.at(15.0, 6)
    found = account.goodput(12.0)
    assert found.wall_s == 10
    assert found.useful_s == 9


def test_a_run_that_never_trained_has_only_lost():
    account = Account(marks={"submitted_at": 0.0, "submitted": 1.0, "driver": 3.0, "nodes": 33.0})
    account.ended(35.0)
    found = account.goodput()
    assert (found.lost_s["start"], found.lost_s["wait"], found.wall_s, found.ratio) == (5, 30, 35, 0)


def test_in_words_without_what_is_nothing():
    account = Account(marks={"submitted_at": 0.0, "submitted": 2.0})
    account.changed(formed(1, "a", time=2.0))
    account.take(phase(0, 4.0))
    account.take(at(100, 12.0))
    commit = {"kind": "commit", "time": 12.5, "step": 100, "seconds": 0.6, "blocked_s": 0.5}
    account.take(commit)
    account.ended(13.0)
    assert in_words(account.to_json()["goodput"]) == (
        "goodput 61.5%: 8.0 s of steps in 13.0 s; start 4.0 s, checkpoint 0.5 s, rest 0.5 s"
    )
    assert account.to_json()["blocked_seconds"] == 0.5


def test_every_cause_has_a_meaning():
    assert tuple(MEANINGS) == CAUSES
