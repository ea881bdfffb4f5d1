"""Which seats trials get, who has to leave, and what is given back; against the ledger's own book."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from eagleray.capacity import Allotment, Book, Facts, Grant, Notice, Request, Statement, Units
from eagleray.capacity.client import allotment
from eagleray.errors import CapacityError
from eagleray.tuning.room import FORCE_S, Allotted, Anywhere, Order, Use

CLAIM = "s"


def request(num_trials: int) -> Request:
    return Request.search(CLAIM, "search s", {"CPU": 1}, wanted=num_trials)


@dataclass
class Claim:
    """A claim whose ledger carries out what a test says; what the search states counts at once."""

    book: Book = field(default_factory=Book)
    held: Units = field(default_factory=dict)
    used: Units = field(default_factory=dict)
    asked: Request = field(default_factory=lambda: request(9))
    refusal: CapacityError | None = None

    def __post_init__(self) -> None:
        self.book = self.book.exchange(Statement(self.asked), 0.0)

    @property
    def allotment(self) -> Allotment:
        return allotment(self.book.claims[CLAIM], 0.0)

    def grant(self, **units: int) -> None:
        self.book = self.book.carry_out([Grant(CLAIM, units, "")], 0.0)
        self.held = self.book.claims[CLAIM].held

    def take(self, **units: int) -> None:
        notice = Notice(CLAIM, units, 0, 10.0, "needed by service digits", ("x",))
        self.book = self.book.carry_out([notice], 0.0)

    def state(
        self, *, request: Request | None = None, used: Units | None = None, facts: Facts | None = None
    ) -> None:
        self.asked, self.used = request or self.asked, used if used is not None else self.used
        self._exchange()

    def give_back(self, units: Units) -> None:
        self.held = {node: had - units.get(node, 0) for node, had in self.held.items()}
        self._exchange()

    def _exchange(self) -> None:
        seen = self.book.claims[CLAIM].version
        self.book = self.book.exchange(Statement(self.asked, seen, self.held, self.used), 0.0)
        self.held = self.book.claims[CLAIM].held


def room(claim: Claim, units_per_trial: int = 1, clock: list[float] | None = None) -> Allotted:
    now = clock or [0.0]
    return Allotted(CLAIM, claim, request, units_per_trial, clock=lambda: now[0])


def use(in_use: Units, num_wanted: int = 9, asked_for: Units | None = None) -> Use:
    return Use(in_use, asked_for or {}, num_wanted, Facts())


def test_a_trial_sits_where_a_unit_is_allotted_and_no_further_one_does() -> None:
    claim = Claim()
    seats = room(claim)
    assert seats.take(1) is None
    claim.grant(a=1, b=2)
    assert [seats.take(number) for number in (1, 2, 3, 4)] == [{"b": 1}, {"a": 1}, {"b": 1}, None]
    seats.leave(2)
    assert not seats.has_free({"b": 1})
    assert seats.has_free({"a": 1})
    assert seats.take(4) == {"a": 1}


def test_a_seat_where_a_process_waits_comes_first() -> None:
    claim = Claim()
    claim.grant(a=1, b=2)
    seats = room(claim)
    seats.prefer({"a": 1})
    assert seats.take(1) == {"a": 1}


def test_workers_of_one_trial_sit_on_several_nodes_and_all_of_them_or_none() -> None:
    claim = Claim()
    claim.grant(a=1, b=2)
    seats = room(claim, units_per_trial=2)
    assert seats.take(1) == {"a": 1, "b": 1}
    assert seats.take(2) is None, "one unit is left, a trial has two"
    claim.grant(b=1)
    assert seats.take(2) == {"b": 2}


def test_the_least_progressed_of_the_node_leaves_and_its_unit_comes_back_when_it_has_ended() -> None:
    claim, clock = Claim(), [0.0]
    claim.grant(a=2, b=1)
    seats = room(claim, clock=clock)
    assert [seats.take(number) for number in (1, 2, 3)] == [{"a": 1}, {"a": 1}, {"b": 1}]
    seats.tell(use({"a": 2, "b": 1}))
    progress = {1: 0.5, 2: 0.3, 3: 0.1}
    claim.take(a=1)
    assert seats.orders(progress.__getitem__) == [Order(2, 10.0 - FORCE_S)]
    progress[2] = 0.9
    assert seats.orders(progress.__getitem__) == [Order(2, 10.0 - FORCE_S)], "it stays with the first"
    seats.tell(use({"a": 2, "b": 1}))
    assert claim.held == {"a": 2, "b": 1}, "it still runs"
    clock[0] = 10.0 - FORCE_S
    assert seats.orders(progress.__getitem__) == [Order(2, 0.0)]
    seats.leave(2)
    seats.tell(use({"a": 2, "b": 1}))
    assert claim.held == {"a": 2, "b": 1}, "its process is on its way out"
    seats.tell(use({"a": 1, "b": 1}))
    assert claim.held == {"a": 1, "b": 1}
    assert claim.book.claims[CLAIM].notice is None, "obeyed"
    assert seats.orders(progress.__getitem__) == []
    assert seats.take(4) is None


def test_all_leave_when_nothing_is_left() -> None:
    claim = Claim()
    claim.grant(a=1, b=1)
    seats = room(claim, units_per_trial=2)
    seats.take(1)
    claim.take(a=1, b=1)
    assert [order.number for order in seats.orders(lambda _: 0.0)] == [1]
    assert seats.reason == "needed by service digits"


def test_what_no_trial_is_left_for_is_given_back() -> None:
    claim = Claim()
    claim.grant(a=2, b=2)
    seats = room(claim)
    for number in (1, 2, 3):
        seats.take(number)
    seats.tell(use({"a": 2, "b": 1}, num_wanted=3))
    assert (sum(claim.held.values()), claim.asked.wanted) == (3, 3)
    seats.leave(1)
    seats.tell(use({"a": 2, "b": 1}, num_wanted=2))
    assert sum(claim.held.values()) == 3, "it is still there"
    seats.tell(use({"b": 1, "a": 1}, num_wanted=2))
    assert claim.held == {"a": 1, "b": 1}


def test_a_unit_that_ray_was_asked_for_is_not_given_back_yet() -> None:
    claim = Claim()
    claim.grant(a=1)
    seats = room(claim)
    seats.take(1)
    claim.take(a=1)
    seats.leave(1)
    seats.tell(use({}, asked_for={"a": 1}))
    assert claim.held == {"a": 1}
    seats.tell(use({}))
    assert claim.held == {}


def test_what_the_ledger_refuses_ends_the_search() -> None:
    claim = Claim(refusal=CapacityError("never"))
    with pytest.raises(CapacityError, match="never"):
        room(claim).tell(use({}))


def test_without_a_ledger_there_is_room_anywhere() -> None:
    seats = Anywhere()
    assert [seats.take(number) for number in (1, 2)] == [{}, {}]
    assert seats.orders(lambda _: 0.0) == []
    assert seats.has_free({})
