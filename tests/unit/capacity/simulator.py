"""A cluster in memory for the ledger's policy: nodes, holders that obey or do not, work that has no claim.

It refuses what Ray would refuse: a unit starts only where its node has room for it. After each tick what must
always hold is checked; `settle` ends the disturbances and checks that nobody was left waiting in vain.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from eagleray.capacity import (
    AskNodes,
    Book,
    Decision,
    Evict,
    Expire,
    Facts,
    Grant,
    Node,
    Notice,
    Observation,
    Request,
    Settings,
    Statement,
    Withdraw,
    decide,
)
from eagleray.capacity.client import allotment
from eagleray.capacity.placement import Capacity
from eagleray.capacity.resources import num_fitting, plus
from unit.capacity.checked import Checked

QUICK = Settings(
    lease_s=4,
    cool_down_s=4,
    grow_every_s=2,
    after_withdrawal_s=1,
    patience_s=8,
    ask_after_s=1,
    start_limit_s=4,
    evict_every_s=2,
)
YIELD_S = 3
NODE_START_S = 2
SETTLED_AFTER_S = 60
"""Longest chain of waits: a lease, patience, and for each of some claims in turn a yield and a cool-down."""
_LIVE = (Grant, Notice, Evict, Withdraw)


@dataclass
class Holder:
    """Whoever has a claim."""

    request: Request
    delay_s: float = 0
    """How long it takes to obey; never, where it is infinite."""
    is_out_of_reach: bool = False
    """Nothing of it can be ended by force."""
    asks_since_s: float | None = None
    lacks_since_s: float = 0.0
    silent_until_s: float = 0.0
    unnoticed: Counter[str] = field(default_factory=Counter)
    """Ended by force a moment ago: it says once more that they run."""
    used: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    seen: int = 0
    told_s: float | None = None
    """When it first saw the notice that is outstanding."""

    def statement(self, now_s: float) -> Statement:
        facts = Facts(since_commit_s=len(self.request.claim), restart_cost_s=1)
        if self.held or self.asks_since_s is None:
            self.lacks_since_s = now_s
        if self.asks_since_s is None:
            self.asks_since_s = now_s
        held, used = self.held + self.unnoticed, self.used + self.unnoticed
        asked_s, lacked_s = now_s - self.asks_since_s, now_s - self.lacks_since_s
        return Statement(self.request, self.seen, held, used, facts, asked_s=asked_s, lacked_s=lacked_s)


class World(Checked):
    """Advances by a second at a time; `book` and `nodes` are what the ledger knows, the rest is what is."""

    def __init__(self, nodes: Iterable[Node], capacity: Capacity | None = None, settings: Settings = QUICK):
        self.now_s = 0.0
        self.nodes = {node.id: node for node in nodes}
        self.capacity, self.settings = capacity, settings
        self.book = Book()
        self.holders: dict[str, Holder] = {}
        self.strangers: list[tuple[str, Mapping[str, float]]] = []
        """Node and resources of what runs without a claim."""
        self.decided: list[Decision] = []
        self.starting_nodes: list[tuple[float, Node]] = []
        self._num_nodes = len(self.nodes)
        self.history = {}

    # what happens to the cluster

    def open(self, request: Request, delay_s: float = 0, *, is_out_of_reach: bool = False) -> None:
        self.holders[request.claim] = Holder(request, delay_s, is_out_of_reach)

    def want(self, claim: str, wanted: int) -> None:
        holder = self.holders[claim]
        holder.request = replace(holder.request, wanted=max(holder.request.minimum, wanted))
        while not holder.request.is_gang and holder.held.total() > holder.request.wanted:
            self._give(holder, {max(+holder.held): 1})
        if claim in self.book.claims and holder.silent_until_s <= self.now_s:
            self.book = self.book.exchange(holder.statement(self.now_s), self.now_s)

    def finish(self, claim: str) -> None:
        del self.holders[claim]
        self.book = self.book.close(claim)

    def die(self, claim: str, *, leaves_processes: bool) -> None:
        holder = self.holders.pop(claim)
        if leaves_processes:
            for node in holder.used.elements():
                self.strangers.append((node, holder.request.bundle))

    def pause(self, claim: str, for_s: int) -> None:
        """It does and says nothing for so long; what it runs goes on."""
        self.holders[claim].silent_until_s = self.now_s + for_s

    def join(self, node: Node) -> None:
        self._num_nodes += 1
        name = f"{node.id}-{self._num_nodes:02}"
        self.nodes[name] = replace(node, id=name)

    def lose(self, node: str) -> None:
        del self.nodes[node]
        self.strangers = [stranger for stranger in self.strangers if stranger[0] != node]
        for holder in self.holders.values():
            holder.used.pop(node, None)
            holder.unnoticed.pop(node, None)

    def drain(self, node: str) -> None:
        self.nodes[node] = replace(self.nodes[node], is_draining=True, leaves_s=self.now_s + YIELD_S)

    def run_without_claim(self, node: str, bundle: Mapping[str, float]) -> None:
        if num_fitting(bundle, self._room(node)):
            self.strangers.append((node, bundle))

    def restart_ledger(self) -> None:
        """A ledger that knows nothing, and listens for one lease before its first decision."""
        self.book = Book()
        self.history.clear()
        for name, node in self.nodes.items():
            self.nodes[name] = replace(node, other={})
        for _ in range(int(self.settings.lease_s)):
            self._pass_second()
        claims = tuple(self.book.claims.values())
        self.nodes = {
            name: node.with_use(self._in_use(name), claims, None, unsaid_since_s=self.now_s)
            for name, node in self.nodes.items()
        }

    # time

    def tick(self) -> list[Decision]:
        """One second: nodes, holders, one round of the ledger."""
        self._pass_second()
        return self._decide()

    def _pass_second(self) -> None:
        self.now_s += 1
        self._move_nodes()
        speaking = [one for one in self.holders.values() if one.silent_until_s <= self.now_s]
        for holder in speaking:
            self._live(holder)
        for holder in speaking:
            if holder.request.claim not in self.book.claims:
                holder.unnoticed.clear()  # it was silent for long, or there is a new ledger
            self.book = self.book.exchange(holder.statement(self.now_s), self.now_s)
            holder.unnoticed.clear()
        self.book = self.book.on(self.nodes, self.now_s)

    def settle(self) -> None:
        """Time without disturbances until nothing changes any more; then nobody may wait in vain."""
        quiet_s = 0
        span_s = self.settings.cool_down_s + self.settings.patience_s + 2
        for _ in range(SETTLED_AFTER_S):
            decided = self.tick()
            quiet_s = 0 if any(isinstance(d, _LIVE) for d in decided) or self.starting_nodes else quiet_s + 1
            if quiet_s > span_s:
                break
        else:
            raise AssertionError(f"no end: {decided}")
        self.check_nobody_waits_in_vain()

    def _move_nodes(self) -> None:
        for at_s, node in self.starting_nodes:
            if at_s <= self.now_s:
                self.join(node)
        self.starting_nodes = [entry for entry in self.starting_nodes if entry[0] > self.now_s]
        for node in [node for node in self.nodes.values() if node.leaves_s is not None]:
            if node.leaves_s is not None and node.leaves_s <= self.now_s:
                self.lose(node.id)

    def _live(self, holder: Holder) -> None:
        """See the allotment, obey it, take into use what is there."""
        claim = self.book.claims.get(holder.request.claim)
        if claim is None:
            return
        told = allotment(claim, self.now_s)
        if holder.seen != told.version:
            leaving = Counter[str]() if told.deadline_s is None else holder.held
            holder.seen, holder.held = told.version, Counter(told.units) | leaving
        if told.deadline_s is None:
            holder.told_s = None
        else:
            holder.told_s = self.now_s if holder.told_s is None else holder.told_s
            if self.now_s - holder.told_s >= holder.delay_s:
                self._give(holder, holder.held - Counter(told.units))
        for node in (holder.held - holder.used).elements():
            if node in self.nodes and num_fitting(holder.request.bundle, self._room(node)):
                holder.used[node] += 1

    def _give(self, holder: Holder, units: Mapping[str, int]) -> None:
        holder.held -= Counter(units)
        holder.used &= holder.held

    def _room(self, node: str) -> Mapping[str, float]:
        left = plus(self.nodes[node].total, self._in_use(node), -1)
        return left

    def _in_use(self, node: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for holder in self.holders.values():
            found = plus(found, holder.request.bundle, holder.used[node])
        for at, bundle in self.strangers:
            found = plus(found, bundle, 1 if at == node else 0)
        return found

    def _decide(self) -> list[Decision]:
        claims = tuple(self.book.claims.values())
        since_s = self.now_s - self.settings.start_limit_s
        self.nodes = {
            name: node.with_use(self._in_use(name), claims, node, unsaid_since_s=since_s)
            for name, node in self.nodes.items()
        }
        nodes = tuple(self.nodes.values())
        observation = Observation(self.now_s, nodes, claims, self.capacity)
        self.decided = decide(observation, self.settings)
        if self.now_s % 8 == 0:
            assert decide(observation, self.settings) == self.decided
        self.check(self.decided)
        for decision in self.decided:
            if isinstance(decision, Expire):
                claim = self.book.claims[decision.claim]
                self.nodes = {name: node.after_end_of(claim) for name, node in self.nodes.items()}
        self.book = self.book.carry_out(self.decided, self.now_s)
        self.check_nodes()
        for decision in self.decided:
            if isinstance(decision, Evict):
                self._evict(decision)
            elif isinstance(decision, AskNodes):
                self._start_nodes(decision)
        return self.decided

    def _evict(self, decision: Evict) -> None:
        holder = self.holders.get(decision.claim)
        if holder is not None and holder.is_out_of_reach:
            return
        self.book = self.book.ended(decision.claim, decision.units, self.now_s)
        if holder is not None:
            holder.unnoticed = holder.used & Counter(decision.units)
            self._give(holder, decision.units)

    def _start_nodes(self, decision: AskNodes) -> None:
        """Like Ray: what is asked for, one node after the other, as long as its type allows."""
        assert self.capacity is not None
        if self.starting_nodes:
            return
        for kind in self.capacity.types:
            present = sum(node.node_type == kind.name for node in self.nodes.values())
            fits = any(
                kind.matches(ask.label_selector) and kind.num_fitting(ask.bundle) for ask in decision.asks
            )
            if (
                fits
                and present < kind.max_nodes
                and self._num_on_demand() < (self.capacity.max_nodes or math.inf)
            ):
                node = Node(kind.name, dict(kind.resources), labels=kind.labels or {}, node_type=kind.name)
                self.starting_nodes.append((self.now_s + NODE_START_S, replace(node, is_on_demand=True)))
                return

    def _num_on_demand(self) -> int:
        return sum(node.is_on_demand for node in self.nodes.values())
