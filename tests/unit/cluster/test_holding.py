"""A holder's side of the protocol, over the ledger's Book: what is stated, heard, given back, counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from eagleray.capacity import (
    Allotment,
    Book,
    Decision,
    Facts,
    Grant,
    Notice,
    Request,
    Statement,
    Suspend,
    Withdraw,
)
from eagleray.capacity.client import allotment
from eagleray.cluster.holding import Holding
from eagleray.errors import CapacityError, InputError

CPU = {"CPU": 1}
RUN = Request.run("r", "run r", CPU, minimum=1, wanted=4)
OFTEN_S = 0.02


class Ledger:
    """A Book behind the ClaimClient's methods; decides what a test says, and can be away or mute."""

    def __init__(self) -> None:
        self.book = Book()
        self.statements: list[Statement] = []
        self.closed: list[str] = []
        self.num_listening = 0
        """Calls of `wait`."""
        self.is_away = False
        self.is_mute = False
        """It hears, and its answers to statements are lost."""
        self.is_deaf_line = False
        """Nothing comes through `wait`."""
        self.refusal: Exception | None = None
        self.changed = threading.Condition()

    def exchange(self, statement: Statement) -> Allotment | None:
        with self.changed:
            self.statements.append(statement)
            if self.is_away:
                return None
            if self.refusal is not None:
                raise self.refusal
            self.book = self.book.exchange(statement, 1.0)
            self.changed.notify_all()
            return None if self.is_mute else allotment(self.book.claims[statement.request.claim], 1.0)

    def wait(self, claim: str, seen: int, timeout_s: float) -> Allotment | None:
        with self.changed:
            self.num_listening += 1
            num_closed = self.closed.count(claim)

            def has_news() -> bool:
                found = self.book.claims.get(claim)
                is_new = found is not None and found.version != seen
                is_closed = self.closed.count(claim) > num_closed
                return (is_new or is_closed) and not (self.is_away or self.is_deaf_line)

            has_come = self.changed.wait_for(has_news, timeout_s) and claim in self.book.claims
            return allotment(self.book.claims[claim], 1.0) if has_come else None

    def close(self, claim: str) -> None:
        with self.changed:
            self.closed.append(claim)
            if not self.is_away:
                self.book = self.book.close(claim)
                self.changed.notify_all()

    def decides(self, *decisions: Decision) -> None:
        with self.changed:
            self.book = self.book.carry_out(decisions, 1.0)
            self.changed.notify_all()

    @property
    def held(self) -> dict[str, int]:
        return dict(self.book.claims["r"].held)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def hold(ledger: Ledger) -> Iterator[Callable[..., Holding]]:
    made: list[Holding] = []

    def make(request: Request = RUN, **more) -> Holding:
        made.append(Holding(ledger, request, **{"every_s": OFTEN_S, **more}))
        return made[-1]

    yield make
    for holding in made:
        holding.close()


def until(condition: Callable[[], object], limit_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come about"
        time.sleep(0.001)


def granted(ledger: Ledger, holding: Holding, **units: int) -> Allotment:
    """A grant that the holder has heard of, and has stated that it holds."""
    until(lambda: "r" in ledger.book.claims)
    ledger.decides(Grant("r", units, ""))
    version = ledger.book.claims["r"].version
    found = holding.wait(lambda allotted: allotted.version == version, 10)
    assert found is not None
    until(lambda: ledger.statements[-1].seen == version)
    return found


def test_a_grant_is_heard_and_held_until_it_is_given_back(ledger, hold):
    heard: list[Allotment] = []
    holding = hold(heard=heard.append)
    assert granted(ledger, holding, a=2, b=1).units == {"a": 2, "b": 1}
    assert holding.held == ledger.held == {"a": 2, "b": 1}
    holding.give_back({"a": 1})
    until(lambda: ledger.held == {"a": 1, "b": 1})
    until(lambda: holding.allotment.units == {"a": 1, "b": 1})
    assert holding.allotment.version == 1, "the holder's own doing is no new version"
    holding.state(held={"b": 1}, used={"b": 1})
    until(lambda: ledger.held == {"b": 1} == dict(ledger.book.claims["r"].used))
    assert [allotted.version for allotted in heard] == [0, 1]


def test_each_statement_says_since_when_a_ledger_has_known_of_the_claim_and_it_has_lacked(ledger, hold):
    ledger.is_away = True
    holding = hold()
    until(lambda: len(ledger.statements) > 3)
    assert {(said.asked_s, said.lacked_s) for said in ledger.statements} == {(0.0, 0.0)}
    ledger.is_away = False
    until(lambda: ledger.statements[-1].asked_s > 0.05)
    assert ledger.statements[-1].lacked_s >= ledger.statements[-1].asked_s
    granted(ledger, holding, a=1)
    until(lambda: ledger.statements[-1].held)
    assert (ledger.statements[-1].lacked_s, ledger.statements[-1].asked_s > 0.05) == (0.0, True)
    holding.give_back({"a": 1})
    until(lambda: 0 < ledger.statements[-1].lacked_s < ledger.statements[-1].asked_s)


def test_the_ledger_hears_of_a_change_at_once(ledger, hold):
    holding = hold(every_s=60.0)
    until(lambda: len(ledger.statements) == 1)
    holding.state(request=replace(RUN, wanted=7))
    until(lambda: ledger.book.claims["r"].request.wanted == 7)
    holding.state(used={"a": 1})
    until(lambda: ledger.book.claims["r"].used == {"a": 1})
    before = len(ledger.statements)
    holding.state(used={"a": 1, "b": 0}, request=replace(RUN, wanted=7))
    holding.state(facts=Facts(progress=0.5))
    assert len(ledger.statements) == before, "nothing that the ledger would act on has changed"


def test_a_notice_is_obeyed_by_giving_back_and_not_by_hearing(ledger, hold):
    holding = hold()
    granted(ledger, holding, a=2, b=1)
    ledger.decides(Notice("r", {"a": 1, "b": 1}, 1, 11.0, "service s needs it", ("s",)))
    found = holding.wait(lambda allotted: allotted.deadline_s is not None, 10)
    assert found == Allotment(2, {"a": 1}, 10.0, False, "service s needs it")
    until(lambda: ledger.statements[-1].seen == 2)
    assert holding.held == ledger.held == {"a": 2, "b": 1}, "heard is not given back"
    holding.give_back({"b": 1})
    until(lambda: ledger.held == {"a": 2})
    assert ledger.book.claims["r"].notice is not None
    holding.give_back({"a": 1})
    until(lambda: ledger.held == {"a": 1})
    assert ledger.book.claims["r"].notice is None
    until(lambda: holding.allotment == Allotment(2, {"a": 1}))


def test_a_suspension_and_the_way_back(ledger, hold):
    holding = hold()
    granted(ledger, holding, a=2)
    ledger.decides(Suspend("r", {"a": 2}, 0, 11.0, "service s needs it", ("s",)))
    assert holding.wait(lambda allotted: allotted.is_suspension, 10) is not None
    holding.state(held={}, used={})
    until(lambda: not ledger.held)
    assert granted(ledger, holding, b=1).units == {"b": 1}
    assert ledger.held == {"b": 1}


def test_a_withdrawn_notice_leaves_what_was_not_given_back_yet(ledger, hold):
    holding = hold()
    granted(ledger, holding, a=1, b=1)
    ledger.decides(Notice("r", {"b": 1}, 1, 11.0, ""))
    assert holding.wait(lambda allotted: allotted.deadline_s is not None, 10) is not None
    ledger.decides(Withdraw("r", ""))
    assert holding.wait(lambda allotted: allotted.version == 3, 10) == Allotment(3, {"a": 1, "b": 1})
    until(lambda: ledger.statements[-1].seen == 3)
    assert ledger.held == {"a": 1, "b": 1}


def test_a_return_that_crosses_a_grant_is_stated_again(ledger, hold):
    holding = hold()
    granted(ledger, holding, a=2)
    ledger.is_deaf_line = True
    with ledger.changed:  # it gives back and has not heard of the grant
        ledger.decides(Grant("r", {"c": 1}, ""))
        before = len(ledger.statements)
        holding.give_back({"a": 1})
    until(lambda: ledger.held == {"a": 1, "c": 1})
    assert ledger.statements[before].seen == 1
    until(lambda: holding.allotment.units == {"a": 1, "c": 1})


def test_a_grant_on_a_node_that_was_given_back_is_kept(ledger, hold):
    holding = hold()
    granted(ledger, holding, a=1)
    holding.give_back({"a": 1})
    until(lambda: not holding.allotment.units)
    granted(ledger, holding, a=1)
    assert holding.held == ledger.held == {"a": 1}


def test_what_is_given_back_before_the_answer_to_the_last_return_counts_too(ledger, hold):
    holding = hold()
    granted(ledger, holding, a=3)
    ledger.is_mute = True
    holding.give_back({"a": 1})
    until(lambda: ledger.held == {"a": 2})
    holding.give_back({"a": 1})
    until(lambda: ledger.held == {"a": 1})
    ledger.is_mute = False
    until(lambda: holding.allotment.units == {"a": 1})
    assert holding.held == {"a": 1}


def test_more_cannot_be_given_back_than_there_is(ledger, hold):
    holding = hold()
    granted(ledger, holding, a=1)
    holding.give_back({"a": 5, "b": 1})
    until(lambda: holding.allotment.units == {})
    granted(ledger, holding, a=2)
    assert ledger.held == {"a": 2}


def test_a_node_that_died_is_no_longer_held(ledger, hold):
    holding = hold()
    granted(ledger, holding, a=1, b=1)
    with ledger.changed:
        ledger.book = ledger.book.on(["a"], 1.0)
        ledger.changed.notify_all()
    assert holding.wait(lambda allotted: allotted.units == {"a": 1}, 10) is not None
    assert holding.held == {"a": 1}


def test_what_was_ended_by_force_is_not_stated_to_run(ledger, hold):
    holding = hold()
    granted(ledger, holding, a=2, b=1)
    holding.state(used={"a": 2, "b": 1, "c": 1})  # one of them elsewhere, as Serve places its replicas
    until(lambda: ledger.held == {"a": 2, "b": 1, "c": 1})
    with ledger.changed:
        ledger.book = ledger.book.ended("r", {"a": 1, "b": 1}, 1.0)
        ledger.changed.notify_all()
    until(lambda: ledger.statements[-1].seen == 2)
    assert ledger.held == ledger.statements[-1].used == {"a": 1, "c": 1}


def test_a_ledger_that_is_away_changes_nothing_and_a_new_one_learns_everything(ledger, hold):
    holding = hold()
    granted(ledger, holding, a=2)
    holding.state(used={"a": 1})
    until(lambda: ledger.book.claims["r"].used == {"a": 1})
    assert holding.is_answered
    ledger.is_away = True
    holding.give_back({"a": 1})
    assert holding.wait(lambda allotted: allotted.size < 2, 0.05) is None
    assert holding.allotment.units == {"a": 2}
    with ledger.changed:
        ledger.book, ledger.is_away = Book(), False
    until(lambda: "r" in ledger.book.claims)
    assert (ledger.held, ledger.book.claims["r"].version) == ({"a": 1}, 1)
    assert granted(ledger, holding, b=1).units == {"a": 1, "b": 1}


def test_a_version_of_an_earlier_ledger_does_not_hide_grants_of_the_new_one(ledger, hold):
    holding = hold()
    granted(ledger, holding, a=1)
    granted(ledger, holding, b=1)
    with ledger.changed:  # a ledger that knows the claim from before the last grant
        claim = ledger.book.claims["r"]
        ledger.book = Book({"r": replace(claim, version=1, held={"a": 1})})
    found = holding.wait(lambda allotted: allotted.version > 2, 10)
    assert found is not None
    assert found.units == {"a": 1}


def test_who_takes_over_a_claim_hears_what_it_has(ledger, hold):
    ledger.book = Book().exchange(Statement(RUN, 4, {"a": 2}, {"a": 2}), 1.0)
    found = hold().wait(lambda allotted: allotted.size == 2, 10)
    assert found == Allotment(4, {"a": 2})


@pytest.mark.parametrize("refusal", [InputError("another bundle"), CapacityError("wants 9, at most 3")])
def test_a_refusal_is_raised_and_ends_with_its_cause(ledger, hold, refusal):
    ledger.refusal = refusal
    holding = hold()
    with pytest.raises(type(refusal), match=str(refusal)):
        holding.wait(lambda _: True, 10)
    assert holding.refusal is refusal
    assert holding.is_answered, "a refusal is an answer"
    ledger.refusal = None
    until(lambda: holding.refusal is None)
    assert holding.wait(lambda _: True, 10) == Allotment()


def test_nothing_is_enough_before_the_ledger_has_answered(ledger, hold):
    ledger.is_away = True
    holding = hold()
    assert holding.wait(lambda _: True, 0.05) is None
    assert not holding.is_answered
    ledger.is_away = False
    assert holding.wait(lambda _: True, 10) == Allotment()


def test_close_gives_everything_back_once_and_wakes_who_waits(ledger, hold):
    holding = hold()
    granted(ledger, holding, a=1)
    found: list[Allotment | None] = []
    waiting = threading.Thread(target=lambda: found.append(holding.wait(lambda _: False)))
    waiting.start()
    holding.close()
    holding.close()
    waiting.join(10)
    assert (found, ledger.closed, ledger.book.claims) == ([None], ["r"], {})


def test_close_does_not_wait_for_the_next_statement(ledger, hold):
    holding = hold(every_s=60.0)
    until(lambda: ledger.statements and ledger.num_listening)
    holding.close()
    assert not any(thread.is_alive() for thread in holding._threads), "the listener was not told"


def test_close_with_a_dead_ledger_and_from_within_heard(ledger, hold):
    ledger.is_away = True
    away = hold()
    away.close()
    assert ledger.closed == ["r"]
    ledger.is_away = False
    holding: list[Holding] = []
    has_one = threading.Event()

    def heard(_: Allotment) -> None:
        has_one.wait(10)
        holding[0].close()

    holding.append(hold(heard=heard))
    has_one.set()
    until(lambda: ledger.closed == ["r", "r"])


def test_a_holder_that_takes_its_time_is_stated_and_then_hears_the_rest_in_order(ledger, hold):
    heard: list[int] = []
    is_over = threading.Event()

    def take_time(allotted: Allotment) -> None:
        if allotted.version == 1:
            is_over.wait(10)
        heard.append(allotted.version)

    holding = hold(heard=take_time)
    granted(ledger, holding, a=1)
    granted(ledger, holding, b=1)
    granted(ledger, holding, c=1)
    before = len(ledger.statements)
    until(lambda: len(ledger.statements) > before + 2)
    assert heard == [0]
    is_over.set()
    until(lambda: heard == [0, 1, 2, 3])


def test_a_listener_that_fails_and_a_client_that_fails_do_not_lose_the_claim(ledger, hold, caplog):
    def heard(allotted: Allotment) -> None:
        if allotted.version == 1:
            raise RuntimeError("a listener's fault")

    holding = hold(heard=heard)
    granted(ledger, holding, a=1)
    ledger.refusal = RuntimeError("a fault on the way")
    before = len(ledger.statements)
    until(lambda: len(ledger.statements) > before + 1)
    ledger.refusal = None
    assert granted(ledger, holding, b=1).units == {"a": 1, "b": 1}
    assert "could not be passed on" in caplog.text
    assert "could not be stated" in caplog.text
