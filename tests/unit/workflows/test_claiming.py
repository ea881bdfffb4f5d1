"""A run's claim: what a ledger in memory allots becomes seats, and what goes back is stated."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from eagleray.capacity import Allotment, Facts, Request, Settings, Statement, decide
from eagleray.errors import InputError
from eagleray.specs import TrainSpec, load
from eagleray.training import reservation_ray260
from eagleray.training.observer import Change
from eagleray.training.stopping import Suspended
from eagleray.workflows import claiming
from eagleray.workflows.claiming import ClaimedSeats, RunFacts
from support import pretend_ledger
from support.pretend_ledger import PretendLedger, until
from unit.processes import ROOT
from unit.training.test_reservation import PlayedRay, play_ray

BUNDLE = {"CPU": 1.0}
SOON = Settings(cool_down_s=0.0, grow_every_s=0.0, after_withdrawal_s=0.0)


class Ledger(PretendLedger):
    """That can be asked who waits for what."""

    def report(self):
        claims = self.book.claims.values()
        return {
            "claims": [
                {"id": claim.id, "wait": claim.wait and {"reason": claim.wait.reason}} for claim in claims
            ]
        }

    def serve(self, units: int, name: str = "chat") -> None:
        """A service wants so many replicas, which come up where they may."""
        request = Request.service(name, f"service {name}", BUNDLE, floor=0, wanted=units)
        found = self.exchange(Statement(request))
        for _ in range(2):
            held = found.units if found else {}
            found = self.exchange(Statement(request, found.version if found else 0, held, held))


@pytest.fixture
def played(monkeypatch):
    monkeypatch.setattr(pretend_ledger, "decide", partial(decide, settings=SOON))
    found = PlayedRay(["fine"] * 20)
    play_ray(monkeypatch, found)
    return found


@pytest.fixture
def open_(monkeypatch, played):
    """Opens a run's claim on a ledger over nodes of so many CPUs."""
    opened = []

    def start(ledger, *changes):
        spec = load(TrainSpec, ROOT / "examples/train/digits.toml", changes)
        seats = ClaimedSeats("run-7", spec, BUNDLE, ledger)
        opened.append(seats)
        return seats

    yield start
    for seats in opened:
        seats.close()


def sized(most: int, least: int, **more: object) -> list[str]:
    sizes = {"num_workers": most, "min_workers": least, "label_selector": "{}", **more}
    return [f"scaling.{name}={value}" for name, value in sizes.items()]


def nodes(reservation) -> list[str]:
    return sorted(seat.node for seat in reservation.seats)


def test_a_run_has_its_seats_where_it_was_allotted_them(open_, played):
    ledger = Ledger({"a": 2, "b": 1})
    seats = open_(ledger, *sized(3, 1))
    reservation = seats.reserve()
    reservation.wait(print)
    assert nodes(reservation) == ["a", "a", "b"]
    assert all(group.name.startswith("eagleray-claim:run-7:") for group in played.groups)
    until(lambda: ledger.book.claims["run-7"].used == {"a": 2, "b": 1})
    claim = ledger.book.claims["run-7"]
    assert (claim.request.holder, claim.request.minimum, claim.request.wanted) == ("run run-7", 1, 3)


def test_spares_budget_and_patience_are_in_its_request(open_):
    ledger = Ledger({"a": 4})
    open_(ledger, *sized(2, 1, spares=1, budget=2, yield_s=5))
    until(lambda: ledger.held("run-7") == {"a": 3})
    request = ledger.book.claims["run-7"].request
    assert (request.wanted, request.budget, request.yield_s) == (3, 2, 5)


def test_what_others_need_is_given_back_when_its_workers_have_stopped(open_, played):
    ledger = Ledger({"a": 2, "b": 1})
    reservation = open_(ledger, *sized(3, 1)).reserve()
    reservation.wait(print)
    taken = [seat for seat, _ in reservation.take_actors()]
    ledger.serve(1)
    until(lambda: any(seat.is_leaving for seat in taken))
    (leaving,) = [seat for seat in taken if seat.is_leaving]
    assert reservation.reason == "needed by service chat (serving burst)"
    assert 9 < reservation.leave_by - pretend_ledger.time.monotonic() <= 10
    assert ledger.held("chat") == {}
    reservation.close(leaving)
    until(lambda: sum(ledger.held("run-7").values()) == 2)
    ledger.serve(1)
    assert ledger.held("chat") == {leaving.node: 1}
    assert len(reservation.seats) == 2


def test_a_notice_is_obeyed_while_there_are_no_seats(open_):
    ledger = Ledger({"a": 3})
    seats = open_(ledger, *sized(3, 1))
    until(lambda: ledger.held("run-7") == {"a": 3})
    ledger.serve(1)
    until(lambda: ledger.held("run-7") == {"a": 2})
    ledger.serve(1)
    reservation = seats.reserve()
    reservation.wait(print)
    reservation.release()
    ledger.serve(2)
    until(lambda: ledger.held("run-7") == {"a": 1})
    assert nodes(seats.reserve()) == ["a"]


def test_seats_that_could_not_be_had_are_tried_again(open_, played, monkeypatch):
    ledger, asked = Ledger({"a": 2}), []

    def fails_at_first(*bundles: object, **more: object):
        asked.append(bundles)
        if len(asked) in (1, 3, 4):
            raise RuntimeError("the control store is away")
        return played.placement_group(*bundles, **more)

    ledger.is_away = True
    reservation = open_(ledger, *sized(2, 1)).reserve()
    monkeypatch.setattr(reservation_ray260, "placement_group", fails_at_first)
    ledger.is_away = False
    reservation.wait(print)
    until(lambda: nodes(reservation) == ["a", "a"])
    assert len(played.groups) == 2, "none is forgotten"


def test_a_late_reservation_has_as_much_time_as_the_notice_leaves_it(open_):
    """The time that is left shrinks with each answer; the moment at which it ends does not move."""
    ledger = Ledger({"a": 2})
    seats = open_(ledger, *sized(2, 1))
    reservation = seats.reserve()
    reservation.wait(print)
    reservation.take_actors()
    ledger.serve(1)
    until(lambda: seats._holding.leave_by is not None)
    deadline_s, version = ledger.book.claims["run-7"].notice.deadline_s, seats._holding.allotment.version
    # What an answer was on the way counts, too: until one of them was quick.
    until(
        lambda: seats._holding.allotment.deadline_s < 9.5 and abs(seats._holding.leave_by - deadline_s) < 0.2
    )
    assert seats._holding.allotment.version == version
    assert abs(seats.reserve().leave_by - deadline_s) < 0.2


def test_it_grows_again_when_there_is_room(open_):
    ledger = Ledger({"a": 2})
    reservation = open_(ledger, *sized(2, 1)).reserve()
    reservation.wait(print)
    taken = [seat for seat, _ in reservation.take_actors()]
    ledger.serve(1)
    until(lambda: any(seat.is_leaving for seat in taken))
    reservation.close(next(seat for seat in taken if seat.is_leaving))
    until(lambda: ledger.held("run-7") == {"a": 1})
    ledger.serve(1)
    ledger.close("chat")
    until(lambda: nodes(reservation) == ["a", "a"])
    assert [seat.is_leaving for seat in reservation.seats] == [False, False]


def test_below_its_minimum_it_is_suspended_and_comes_back_in_its_turn(open_):
    ledger, said = Ledger({"a": 2}), []
    seats = open_(ledger, *sized(2, 2))
    reservation = seats.reserve()
    reservation.wait(print)
    taken = [seat for seat, _ in reservation.take_actors()]
    ledger.serve(1)
    until(lambda: reservation.is_suspended)
    assert all(seat.is_leaving for seat in taken)
    for seat in taken:
        reservation.close(seat)
    reservation.release()
    until(lambda: ledger.held("run-7") == {})
    ledger.serve(1)
    again = seats.reserve()
    assert (again.is_suspended, again.seats) == (False, [])
    until(lambda: ledger.book.claims["run-7"].wait is not None)
    assert "service chat" in again.why()
    ledger.close("chat")
    again.wait(said.append)
    assert nodes(again) == ["a", "a"]


def test_a_suspension_before_the_workers_train_gives_all_back_at_once(open_, played):
    ledger = Ledger({"a": 2})
    reservation = open_(ledger, *sized(2, 2)).reserve()
    until(lambda: nodes(reservation) == ["a", "a"])
    played.placed = set()
    assert reservation.why() == "it was granted them, and Ray has not placed them yet"
    ledger.serve(1)
    until(lambda: ledger.held("run-7") == {})
    with pytest.raises(Suspended, match="service chat"):
        reservation.take_actors()


def test_what_is_on_its_way_back_is_not_taken_again(open_):
    """A notice is withdrawn while a seat goes back: the new allotment still counts it."""
    seats = open_(Ledger({"a": 2}), *sized(2, 1))
    reservation = seats.reserve()
    reservation.wait(print)
    until(lambda: len(reservation.seats) == 2)
    kept, gone = (seat for seat, _ in reservation.take_actors())
    seats._holding = SimpleNamespace(  # the moment between giving back and the ledger's counting it
        allotment=Allotment(9, {"a": 2}),
        held={"a": 1},
        leave_by=None,
        asked_back={},
        close=seats._holding.close,
        state=lambda **_: None,
    )
    gone.is_leaving = True
    reservation.gave_back = lambda seat: None
    reservation.close(gone)
    seats._hear(seats._holding.allotment)
    assert reservation.seats == [kept]


def test_what_the_ledger_refuses_ends_the_wait(open_, played):
    ledger = Ledger({"a": 1})
    ledger.exchange(Statement(Request.run("run-7", "another", {"GPU": 1.0}, minimum=1, wanted=1)))
    reservation = open_(ledger, *sized(1, 1)).reserve()
    with pytest.raises(InputError, match="was opened with"):
        reservation.wait(print)


def test_a_closed_claim_gives_all_back(open_):
    ledger = Ledger({"a": 1})
    seats = open_(ledger, *sized(1, 1))
    until(lambda: ledger.held("run-7") == {"a": 1})
    seats.close()
    assert "run-7" not in ledger.book.claims


def test_without_a_ledger_a_run_asks_ray_for_seats(played, monkeypatch):
    monkeypatch.setattr("eagleray.cluster.ledger_client.LedgerClient.find", lambda: None)
    spec = load(TrainSpec, ROOT / "examples/train/digits.toml", sized(2, 1, spares=1))
    with claiming.seats("run-7", spec, BUNDLE) as seats:
        reservation = seats.reserve()
        reservation.wait(print)
        observer: Any = object()
        assert seats.watching(observer) is observer
    assert [group.name for group in played.groups] == ["", "", ""]


def test_what_a_run_would_lose_is_known_from_what_it_tells(monkeypatch):
    heard, now = [], 100.0
    monkeypatch.setattr(claiming, "time", SimpleNamespace(time=lambda: now))
    facts = RunFacts()
    observer: Any = SimpleNamespace(changed=heard.append, records=heard.append)
    facts.observer = observer
    assert facts.now() == Facts()
    facts.changed(Change(1, [], 0, {}, 90.0))
    facts.records([{"kind": "phase", "time": 92.0, "step": 0}])
    facts.records([{"kind": "step", "time": 95.0, "step": 20, "total_steps": 80}])
    assert facts.now() == Facts(since_commit_s=8.0, progress=0.25)
    facts.records([{"kind": "commit", "time": 97.0, "seconds": 1.0, "step": 20}])
    facts.changed(Change(2, [], 1, {}, 98.0, left_at=97.5))
    facts.records([{"kind": "phase", "time": 99.0, "step": 40}])
    assert facts.now() == Facts(since_commit_s=4.0, progress=0.5, restart_cost_s=1.5)
    assert len(heard) == 6
