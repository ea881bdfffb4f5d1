"""When waiting for the ledger is told, and what."""

from __future__ import annotations

from typing import Any

from eagleray.workflows.queueing import Queue


def report(reason: str | None) -> dict[str, Any]:
    wait = None if reason is None else {"reason": reason}
    return {"claims": [{"id": "other", "wait": {"reason": "x"}}, {"id": "mine", "wait": wait}]}


def test_each_reason_is_told_once_and_a_short_wait_not_at_all() -> None:
    now, said, known = [0.0], list[str](), [report("held by run a")]
    queue = Queue("mine", lambda: known[0], said.append, clock=lambda: now[0])

    def look(at_s: float, *, is_waiting: bool = True) -> None:
        now[0] = at_s
        queue.look(is_waiting=is_waiting)

    look(0.0)
    look(0.9)
    assert said == []
    look(1.0)
    look(1.5)
    look(2.1)
    assert said == ["waiting: held by run a"]
    known[0] = report("held by run b")
    look(2.2)
    assert len(said) == 1, "asked once a second"
    look(3.2)
    known[0] = report(None)
    look(4.5)
    assert said[1:] == ["waiting: held by run b"]
    look(5.0, is_waiting=False)
    known[0] = report("held by run b")
    look(6.0)
    look(7.0)
    assert said[2:] == ["waiting: held by run b"], "it waits anew"


def test_a_ledger_that_is_away_is_told() -> None:
    said: list[str] = []
    now = [0.0]
    queue = Queue("mine", lambda: None, said.append, clock=lambda: now[0])
    queue.look(is_waiting=True)
    now[0] = 1.0
    queue.look(is_waiting=True)
    assert said == ["waiting: the ledger does not answer"]
