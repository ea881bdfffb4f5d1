"""Waiting in the ledger's queue, in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

EVERY_S = 1.0


def reason_of(report: Mapping[str, Any] | None, claim: str) -> str | None:
    """Why the claim with this id waits, by the ledger's report; None where nothing is known of it."""
    if report is None:
        return "the ledger does not answer"
    wait = next((found["wait"] for found in report["claims"] if found["id"] == claim), None)
    return None if wait is None else wait["reason"]


class Queue:
    """Says that a claim waits and for what, when that begins and when it changes."""

    def __init__(
        self,
        claim: str,
        report: Callable[[], Mapping[str, Any] | None],
        say: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Of the claim with this id.

        Args:
            claim: its id.
            report: the ledger's (`LedgerClient.report`); None where it is away.
            say: takes a line.
            clock: seconds.
        """
        self._claim, self._report, self._say, self._clock = claim, report, say, clock
        self._since_s: float | None = None
        self._asked_s = 0.0
        self._said: str | None = None

    def look(self, *, is_waiting: bool) -> None:
        """Say what is new; asks the ledger once a second. What waits for less than a second is not told."""
        now_s = self._clock()
        if not is_waiting:
            self._since_s = self._said = None
            return
        if self._since_s is None:
            self._since_s = self._asked_s = now_s
        if now_s - self._asked_s < EVERY_S:
            return
        self._asked_s = now_s
        reason = reason_of(self._report(), self._claim)
        if reason is not None and reason != self._said:
            self._said = reason
            self._say(f"waiting: {reason}")
