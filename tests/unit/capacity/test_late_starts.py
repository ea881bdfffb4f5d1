"""What is granted and does not seem to run: it goes back where its place is taken, unless it was late."""

from __future__ import annotations

from dataclasses import replace

from eagleray.capacity import Book, Claim, Notice, Withdraw
from unit.capacity.claimed import NOW_S, decided, node, only, service

GRANTED_S = NOW_S - 25
TAKEN = node("a", other={"CPU": 1})
FREE = node("a")


def late() -> Claim:
    """A service whose replica was granted and has not been seen to run, after it was told to give up."""
    claim = service(held={"a": 1}, used={}, granted_s=GRANTED_S)
    [notice] = only(Notice, decided([TAKEN], [claim]))
    assert notice.reason == "something else has taken the place"
    return Book({claim.id: claim}).carry_out([notice], NOW_S).claims[claim.id]


def withdrawn(claim: Claim, there=FREE, **changes) -> list[str]:
    found = decided([there], [replace(claim, **changes)])
    return [decision.reason for decision in only(Withdraw, found)]


def test_what_runs_after_all_stays():
    assert withdrawn(late(), used={"a": 1}) == ["it runs by now"]
    assert withdrawn(late(), used={"a": 1}, evicted_s=NOW_S) == ["it runs by now"]


def test_what_does_not_run_goes_back_and_so_does_what_has_to_leave():
    assert withdrawn(late()) == []
    assert withdrawn(late(), TAKEN, used={"a": 1}) == [], "there is not room for both"
    assert withdrawn(late(), node("a", is_draining=True), used={"a": 1}) == []
