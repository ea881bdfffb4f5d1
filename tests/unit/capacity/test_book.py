"""What statements and decisions make of the claims."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eagleray.capacity import (
    Allotment,
    Ask,
    AskNodes,
    Book,
    Evict,
    Expire,
    Grant,
    Notice,
    Request,
    Statement,
    Suspend,
    Wait,
    Withdraw,
)
from eagleray.capacity.client import allotment
from eagleray.errors import InputError
from unit.capacity.claimed import CPU

REQUEST = Request.run("r", "run r", CPU, minimum=1, wanted=3)
NOTICE = Notice("r", {"b": 1}, 1, 20.0, "service s needs it", ("s",))


def book(*decisions, held=None, now_s: float = 10.0) -> Book:
    """A run that holds what is given, after `decisions`."""
    return Book().exchange(statement(held or {}, seen=3), 5.0).carry_out(decisions, now_s)


def statement(held, seen: int, request: Request = REQUEST) -> Statement:
    return Statement(request, seen, held, held)


def test_a_claim_is_opened_granted_used_and_closed():
    opened = Book().exchange(Statement(REQUEST), 5.0)
    assert (opened.claims["r"].opened_s, opened.claims["r"].size) == (5.0, 0)
    granted = opened.carry_out([Grant("r", {"a": 2}, "")], 6.0)
    claim = granted.claims["r"]
    assert (claim.held, claim.starting, claim.granted_s) == ({"a": 2}, {"a": 2}, 6.0)
    assert allotment(claim, 6.0) == Allotment(1, {"a": 2})
    used = granted.exchange(Statement(REQUEST, 1, {"a": 2}, {"a": 1}), 7.0).claims["r"]
    assert (used.starting, used.renewed_s, used.opened_s) == ({"a": 1}, 7.0, 5.0)
    assert granted.close("r").claims == {}


def test_what_is_held_counts_only_from_who_has_seen_the_newest_allotment():
    granted = Book().exchange(Statement(REQUEST), 5.0).carry_out([Grant("r", {"a": 1}, "")], 6.0)
    assert granted.exchange(statement({}, seen=0), 7.0).claims["r"].held == {"a": 1}, "it has not seen it yet"
    assert granted.exchange(statement({}, seen=1), 7.0).claims["r"].held == {}, "it has, and gives it back"


def test_nobody_takes_more_than_was_granted_but_what_runs_counts():
    granted = book(held={"a": 1})
    more = Statement(REQUEST, 3, {"a": 2, "b": 1}, {"a": 1})
    assert granted.exchange(more, 7.0).claims["r"].held == {"a": 1}
    assert granted.exchange(statement({"a": 1, "b": 1}, 3), 7.0).claims["r"].held == {"a": 1, "b": 1}


def test_a_new_ledger_takes_claims_over_with_what_they_hold():
    claim = Book().exchange(Statement(REQUEST, 7, {"a": 1, "b": 1}, {"a": 1}), 5.0).claims["r"]
    assert (claim.held, claim.used, claim.version) == ({"a": 1, "b": 1}, {"a": 1}, 7)
    assert allotment(claim, 5.0).size == 2
    assert claim.granted_s == 5.0, "what does not run yet may just have been granted"
    assert Book().exchange(Statement(REQUEST, 7), 5.0).claims["r"].granted_s is None


def test_a_new_ledger_knows_who_came_first_and_waits_for_how_long():
    known = Statement(REQUEST, 7, asked_s=300.0, lacked_s=20.0)
    claim = Book().exchange(known, 1000.0).claims["r"]
    assert (claim.opened_s, claim.waiting_s, claim.renewed_s) == (700.0, 980.0, 1000.0)
    waits = Book({"r": claim}).carry_out([Wait("r", 1, "held", (), "busy")], 1001.0)
    assert waits.claims["r"].waiting_s == 980.0
    running = Book().exchange(replace(known, held={"a": 1}), 1000.0).claims["r"]
    assert (running.opened_s, running.waiting_s) == (700.0, None)
    assert Book({"r": claim}).exchange(known, 1005.0).claims["r"].opened_s == 700.0, "only at first"


def test_a_version_that_an_earlier_ledger_gave_is_followed_by_a_newer_one():
    older = Book().exchange(statement({"a": 1}, seen=3), 5.0)
    heard = older.exchange(statement({"a": 1, "b": 1}, seen=5), 6.0).claims["r"]
    assert (heard.version, heard.held) == (6, {"a": 1, "b": 1})
    assert Book({"r": heard}).exchange(statement({"a": 1}, seen=5), 7.0).claims["r"].version == 6


def test_a_notice_is_told_obeyed_and_over():
    noticed = book(NOTICE, held={"a": 1, "b": 1})
    claim = noticed.claims["r"]
    assert (claim.held, claim.giving, claim.noticed_s) == ({"a": 1, "b": 1}, {"b": 1}, 10.0)
    assert allotment(claim, 12.0) == Allotment(4, {"a": 1}, 8.0, False, "service s needs it")
    assert allotment(claim, 99.0).deadline_s == 0.0
    obeyed = noticed.exchange(statement({"a": 1}, 4), 13.0).claims["r"]
    assert (obeyed.notice, obeyed.held, obeyed.noticed_s, obeyed.version) == (None, {"a": 1}, 13.0, 4)
    assert allotment(obeyed, 13.0) == Allotment(4, {"a": 1})


def test_a_suspension():
    claim = book(Suspend("r", {"a": 1, "b": 1}, 0, 20.0, ""), held={"a": 1, "b": 1}).claims["r"]
    assert allotment(claim, 10.0) == Allotment(4, {}, 10.0, True)


def test_a_withdrawal():
    claim = book(NOTICE, held={"a": 1, "b": 1}).carry_out([Withdraw("r", "")], 11.0).claims["r"]
    assert (claim.notice, claim.withdrawn_s, claim.noticed_s) == (None, 11.0, 11.0)
    assert allotment(claim, 11.0) == Allotment(5, {"a": 1, "b": 1})


def test_units_that_were_ended_by_force():
    late = book(NOTICE, held={"a": 1, "b": 1}).carry_out([Evict("r", {"b": 1}, 1, "")], 20.0)
    assert (late.claims["r"].evicted_s, late.claims["r"].size) == (20.0, 2)
    ended = late.ended("r", {"b": 1}, 20.5).claims["r"]
    assert (ended.notice, ended.held, ended.used, ended.version) == (None, {"a": 1}, {"a": 1}, 5)
    assert late.ended("gone", {"b": 1}, 20.5) == late


def test_what_has_ended_is_not_held_again_because_its_holder_has_not_noticed():
    ended = book(held={"a": 1, "b": 1}).ended("r", {"b": 1}, 20.0)
    for seen in (3, 4):  # said before it heard of it, and after
        unaware = ended.exchange(statement({"a": 1, "b": 1}, seen), 20.5).claims["r"]
        assert (unaware.held, unaware.used, unaware.version) == ({"a": 1}, {"a": 1}, 4)
    still = Book({"r": unaware})
    noticed = still.exchange(statement({"a": 1}, 4), 21.0)
    again = noticed.exchange(statement({"a": 1, "b": 1}, 4), 22.0).claims["r"]
    assert again.held == {"a": 1, "b": 1}, "one that it has started there since"
    starting = Book().exchange(Statement(REQUEST, 3, {"a": 1}), 5.0).ended("r", {"a": 1}, 20.0)
    assert starting.exchange(statement({"a": 1}, 4), 21.0).claims["r"].held == {"a": 1}, "it was only late"


def test_a_replacement_may_come_with_the_notice_to_leave():
    claim = book(Grant("r", {"c": 1}, ""), NOTICE, held={"a": 1, "b": 1}).claims["r"]
    assert allotment(claim, 10.0).units == {"a": 1, "c": 1}
    again = Book({"r": claim}).carry_out([Grant("r", {"d": 1}, "")], 11.0).claims["r"]
    assert allotment(again, 11.0).units == {"a": 1, "c": 1, "d": 1}


def test_a_node_dies():
    noticed = book(NOTICE, held={"a": 1, "b": 1})
    left = noticed.on(["a"], 11.0).claims["r"]
    assert (left.held, left.notice) == ({"a": 1}, None), "and the notice is obeyed by it"
    assert noticed.on(["a", "b"], 11.0) == noticed


def test_waits_and_asks_are_those_of_the_last_round():
    wait, ask = Wait("r", 1, "held", (), "busy"), Ask("r", CPU, {}, 1)
    waiting = book(wait, AskNodes((ask,)))
    assert (waiting.claims["r"].wait, waiting.claims["r"].waiting_s, waiting.asks) == (wait, 10.0, (ask,))
    other = replace(wait, cause="yield")
    assert waiting.carry_out([other], 12.0).claims["r"].waiting_s == 10.0, "for another reason, but on and on"
    assert waiting.carry_out([Grant("r", {"a": 1}, ""), wait], 12.0).claims["r"].waiting_s == 12.0
    done = waiting.carry_out([], 12.0)
    assert (done.claims["r"].wait, done.claims["r"].waiting_s, done.asks) == (None, None, ())


def test_a_claim_that_has_gone():
    assert book(Expire("r", "silent")).claims == {}
    assert book().close("r").carry_out([Grant("r", {"a": 1}, ""), NOTICE], 11.0).claims == {}


def test_a_claim_keeps_its_bundle():
    other = replace(REQUEST, bundle={"CPU": 2})
    with pytest.raises(InputError) as caught:
        book().exchange(statement({}, 0, other), 6.0)
    assert str(caught.value) == (
        "claim of run r: a unit is 2 CPU, and the claim r was opened with 1 CPU; close it, or use another id"
    )
