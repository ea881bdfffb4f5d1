"""Room that is kept from plain jobs, who never give back, for what may not have it just now."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eagleray.capacity import Grant, Notice, Suspend, Wait, Withdraw
from unit.capacity.claimed import NOW_S, decided, given, job, node, only, run, search

TWO = [node("a"), node("b")]


def test_a_job_does_not_get_the_room_of_a_run_that_cools_down():
    """It would keep it for hours, and the run ranks above it."""
    suspended, waiting = run(minimum=2, wanted=3, noticed_s=NOW_S - 1), job()
    found = decided(TWO, [suspended, waiting])
    assert {wait.claim: wait.cause for wait in found} == {"r": "cool_down", "j": "held"}
    found = decided(TWO, [replace(suspended, noticed_s=NOW_S - 10), waiting])
    assert given(found, Grant) == {"r": {"a": 1, "b": 1}}


def test_for_all_units_that_a_run_would_grow_by_room_is_kept_where_it_is_free():
    four = [node(name) for name in "abcd"]
    grown = run(wanted=3, held={"d": 1}, granted_s=NOW_S - 1)
    grown = replace(grown, wait=Wait("r", 2, "held", (), "", ("d",)))
    claims = [grown, *(job(name, opened_s=1) for name in "123")]
    assert given(decided(four, claims), Grant) == {"1": {"c": 1}}, "two of three free nodes are the run's"
    found = decided(four, [*claims, search(wanted=3)])
    assert given(found, Grant) == {"t": {"a": 1, "b": 1, "c": 1}}, "it would give them back"


@pytest.mark.parametrize(
    ("leaving", "keep"),
    [
        (run(minimum=2, wanted=2, held={"a": 1, "b": 1}), {}),
        (run(wanted=2, held={"a": 1, "b": 1}), {"a": 1}),
        (search("r", 2, held={"a": 1, "b": 1}), {"a": 1}),
    ],
)
def test_a_notice_does_not_go_on_for_the_sake_of_a_job(leaving, keep):
    """Of a service that needs nothing any more; a job would take the room, and keep it."""
    give = {name: 1 for name in leaving.held if name not in keep}
    kind = Notice if keep else Suspend
    noticed = replace(leaving, notice=kind("r", give, len(keep), NOW_S + 5, "", ("s",)), keep=keep)
    found = decided(TWO, [noticed, job()])
    assert [withdrawn.reason for withdrawn in only(Withdraw, found)] == ["nothing needs it any more"]
    assert [(wait.claim, wait.cause) for wait in only(Wait, found)] == [("j", "held")]
