"""A ledger in this process's memory, for holders: the policy that the real one has, without Ray."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from eagleray.capacity import Allotment, AskNodes, Book, Node, Observation, Statement, Units, Wait, decide
from eagleray.capacity.client import allotment


class PretendLedger:
    """A `ClaimClient` over nodes of so many CPUs, where nothing runs without a claim."""

    def __init__(self, nodes: Mapping[str, float]) -> None:
        self.nodes = dict(nodes)
        self.is_away = False
        self.book = Book()
        self._closed: Counter[str] = Counter()
        self._changed = threading.Condition()

    def exchange(self, statement: Statement) -> Allotment | None:
        with self._changed:
            if self.is_away:
                return None
            self.book = self.book.exchange(statement, time.monotonic())
            self._decide()
            return self._allotment(statement.request.claim)

    def wait(self, claim: str, seen: int, timeout_s: float) -> Allotment | None:
        with self._changed:
            num_closed = self._closed[claim]
            self._changed.wait_for(
                lambda: self._is_new(claim, seen) or self._closed[claim] > num_closed, timeout_s
            )
            return self._allotment(claim) if self._is_new(claim, seen) else None

    def close(self, claim: str) -> None:
        with self._changed:
            self.book = self.book.close(claim)
            self._closed[claim] += 1
            self._decide()

    def held(self, claim: str) -> Units:
        """What the claim holds, by node; nothing where it is not open."""
        with self._changed:
            found = self.book.claims.get(claim)
            return dict(found.held) if found else {}

    def _is_new(self, claim: str, seen: int) -> bool:
        return not self.is_away and claim in self.book.claims and self.book.claims[claim].version != seen

    def _allotment(self, claim: str) -> Allotment:
        return allotment(self.book.claims[claim], time.monotonic())

    def _decide(self) -> None:
        """Until nothing is left to do."""
        nodes = tuple(Node(name, {"CPU": cpus}) for name, cpus in self.nodes.items())
        for _ in range(20):
            now_s = time.monotonic()
            decisions = decide(Observation(now_s, nodes, tuple(self.book.claims.values())))
            self.book = self.book.carry_out(decisions, now_s)
            if all(isinstance(decision, AskNodes | Wait) for decision in decisions):
                break
        else:
            raise AssertionError(f"no end of decisions: {decisions}")
        self._changed.notify_all()


def until(condition: Callable[[], object], what: Callable[[], object] = str, limit_s: float = 10) -> None:
    """Return when `condition` holds; after `limit_s` fail, and say `what`."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < limit_s, what()
        time.sleep(0.002)
