"""A cluster in memory for the ledger's policy: nodes, holders that obey or do not, work that has no claim.

It refuses what Ray would refuse: a unit starts only where its node has room for it. After each tick it checks
what must always hold; `settle` ends the disturbances and checks that nobody was left waiting in vain.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from eagleray.capacity import (
    AskNodes,
    Book,
    Claim,
    ClaimClass,
    Decision,
    Evict,
    Facts,
    Grant,
    Node,
    Notice,
    Observation,
    Request,
    Settings,
    Statement,
    Wait,
    Withdraw,
    decide,
)
from eagleray.capacity.client import allotment
from eagleray.capacity.placement import Capacity
from eagleray.capacity.resources import num_fitting, plus

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
    """Whoever has a claim. `delay_s`: how long it takes to obey; never, where it is infinite."""

    request: Request
    delay_s: float = 0
    used: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    seen: int = 0
    told_s: float | None = None
    """When it first saw the notice that is outstanding."""

    def statement(self) -> Statement:
        facts = Facts(since_commit_s=len(self.request.claim), restart_cost_s=1)
        return Statement(self.request, self.seen, +self.held, +self.used, facts)


class World:
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
        self._history: dict[str, list[tuple[float, str]]] = {}

    # what happens to the cluster

    def open(self, request: Request, delay_s: float = 0) -> None:
        self.holders[request.claim] = Holder(request, delay_s)

    def want(self, claim: str, wanted: int) -> None:
        holder = self.holders[claim]
        holder.request = replace(holder.request, wanted=max(holder.request.minimum, wanted))
        while not holder.request.is_gang and holder.held.total() > holder.request.wanted:
            self._give(holder, {max(+holder.held): 1})
        if claim in self.book.claims:
            self.book = self.book.exchange(holder.statement(), self.now_s)

    def finish(self, claim: str) -> None:
        del self.holders[claim]
        self.book = self.book.close(claim)

    def die(self, claim: str, *, leaves_processes: bool) -> None:
        holder = self.holders.pop(claim)
        if leaves_processes:
            for node in holder.used.elements():
                self.strangers.append((node, holder.request.bundle))

    def join(self, node: Node) -> None:
        self._num_nodes += 1
        name = f"{node.id}-{self._num_nodes:02}"
        self.nodes[name] = replace(node, id=name)

    def lose(self, node: str) -> None:
        del self.nodes[node]
        self.strangers = [stranger for stranger in self.strangers if stranger[0] != node]
        for holder in self.holders.values():
            holder.used.pop(node, None)

    def drain(self, node: str) -> None:
        self.nodes[node] = replace(self.nodes[node], is_draining=True, leaves_s=self.now_s + YIELD_S)

    def run_without_claim(self, node: str, bundle: Mapping[str, float]) -> None:
        if num_fitting(bundle, self._room(node)):
            self.strangers.append((node, bundle))

    def restart_ledger(self) -> None:
        """A ledger that knows nothing, and listens for one lease before its first decision."""
        self.book = Book()
        self._history.clear()
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
        for holder in list(self.holders.values()):
            self._live(holder)
        for holder in self.holders.values():
            self.book = self.book.exchange(holder.statement(), self.now_s)
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
            holder.seen, holder.held = told.version, Counter(claim.held)
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
        self._check(self.decided)
        self.book = self.book.carry_out(self.decided, self.now_s)
        self._check_nodes()
        for decision in self.decided:
            if isinstance(decision, Evict):
                self._evict(decision)
            elif isinstance(decision, AskNodes):
                self._start_nodes(decision)
        return self.decided

    def _evict(self, decision: Evict) -> None:
        self.book = self.book.ended(decision.claim, decision.units, self.now_s)
        if holder := self.holders.get(decision.claim):
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

    # what must hold

    def _check(self, decided: list[Decision]) -> None:
        for decision in decided:
            if isinstance(decision, AskNodes):
                continue
            claim = self.book.claims[decision.claim]
            past = self._history.setdefault(claim.id, [])
            if isinstance(decision, Grant):
                self._check_grant(claim, decision, past)
            elif isinstance(decision, Notice):
                self._check_notice(claim, decision, past)
            if not isinstance(decision, Wait):
                past.append((self.now_s, type(decision).__name__))

    def _check_grant(self, claim: Claim, decision: Grant, past: list[tuple[float, str]]) -> None:
        assert set(decision.units) <= {node.id for node in self.nodes.values() if not node.is_draining}
        granted = sum(decision.units.values())
        request = claim.request
        there = self._staying(claim) if request.is_yieldable else claim.size
        assert there + granted <= request.wanted
        if request.is_gang:
            assert there + granted >= request.minimum, "a gang gets its minimum at once"
        if request.rest_class >= ClaimClass.SERVING_BURST or there < request.minimum:
            return
        since_s = [self.now_s - at_s for at_s, what in past if what in ("Notice", "Suspend", "Withdraw")]
        assert min(since_s, default=math.inf) >= self.settings.cool_down_s, "thrash: shrunk, then grown"
        since_s = [self.now_s - at_s for at_s, what in past if what == "Grant"]
        if request.is_gang and claim.size:
            assert min(since_s, default=math.inf) >= self.settings.grow_every_s, "thrash: grown, then grown"

    def _check_notice(self, claim: Claim, decision: Notice, past: list[tuple[float, str]]) -> None:
        request = claim.request
        assert claim.notice is None, "one notice at a time"
        assert all(0 < units <= claim.held[node] for node, units in decision.give.items())
        granted = sum(
            sum(other.units.values())
            for other in self.decided
            if isinstance(other, Grant) and other.claim == claim.id
        )
        assert decision.new_size == claim.size - sum(decision.give.values()) + granted
        assert decision.deadline_s <= self.now_s + request.yield_s
        since_s = [self.now_s - at_s for at_s, what in past if what == "Withdraw"]
        if decision.wanted_by:
            assert min(since_s, default=math.inf) >= self.settings.after_withdrawal_s
            assert request.is_yieldable
            takers = [self.book.claims[taker] for taker in decision.wanted_by]
            top = max(taker.class_of(self._staying(taker)) for taker in takers)
            lost = claim.class_of(decision.new_size)
            is_useless = request.is_gang and claim.size < request.minimum
            assert lost < top or (is_useless and lost == top), "only lower classes give back"
            if request.minimum_class is ClaimClass.SERVING_FLOOR:
                assert decision.new_size >= min(request.minimum, claim.size), "floors are never lent"

    def _staying(self, claim: Claim) -> int:
        """Units that neither a notice nor a draining node takes."""
        kept = {node: units - claim.giving.get(node, 0) for node, units in claim.held.items()}
        return sum(units for node, units in kept.items() if not self.nodes[node].is_draining)

    def _check_nodes(self) -> None:
        """No node has more granted than it has; nor, where something was granted now, than others leave."""
        new = {
            (node, key)
            for decision in self.decided
            if isinstance(decision, Grant)
            for node in decision.units
            for key in self.book.claims[decision.claim].request.bundle
        }
        for node in self.nodes.values():
            left = dict(node.total)
            for claim in self.book.claims.values():
                left = plus(left, claim.request.bundle, -claim.held.get(node.id, 0))
            assert min(left.values()) > -1e-6, f"over-grant on {node}: {left}"
            left = plus(left, node.other, -1)
            assert all(left[key] > -1e-6 for at, key in new if at == node.id), (
                f"over-grant beside others: {node}"
            )

    def check_nobody_waits_in_vain(self) -> None:
        """The first that waits, of those that could fit, cannot be helped; and no room is idle."""
        waiting = sorted(
            (claim for claim in self.book.claims.values() if claim.wait is not None),
            key=lambda claim: (-self._rank(claim), *_turn(claim), claim.opened_s, claim.id),
        )
        feasible = [
            c for c in waiting if self._num(c, {n: plus(x.total, x.other, -1) for n, x in self._usable()})
        ]
        for index, claim in enumerate(feasible):
            if claim.request.budget is not None:
                continue
            rank = self._rank(claim)
            equals = [other for other in feasible[:index] if self._rank(other) == rank]
            is_first_of_class = all(other.size and _turn(other)[0] for other in equals)
            if index == 0:
                assert not self._num(claim, self._reclaimable(rank)), f"starved: {claim}\n{self.decided}"
            if index == 0 or (claim.request.is_yieldable and is_first_of_class):
                assert not self._num(claim, self._free()), f"idle room: {claim}\n{self.decided}"

    def _rank(self, claim: Claim) -> ClaimClass:
        return claim.class_of(claim.size)

    def _usable(self) -> list[tuple[str, Node]]:
        return [(name, node) for name, node in self.nodes.items() if not node.is_draining]

    def _num(self, claim: Claim, room: Mapping[str, Mapping[str, float]]) -> bool:
        """Whether what the claim lacks first fits into `room`."""
        request = claim.request
        lacking = request.minimum - claim.size if request.is_gang and claim.size < request.minimum else 1
        matching = [name for name in room if self.nodes[name].matches(request.label_selector)]
        return sum(num_fitting(request.bundle, room[name]) for name in matching) >= lacking

    def _free(self) -> dict[str, dict[str, float]]:
        return self._without(lambda claim: claim.held)

    def _reclaimable(self, rank: ClaimClass) -> dict[str, dict[str, float]]:
        """What would be free if all who certainly may be asked gave back all that they may be asked for."""

        def stays(claim: Claim) -> Mapping[str, int]:
            request = claim.request
            is_all = request.minimum_class < rank or (request.minimum == 0 and request.rest_class < rank)
            if request.is_yieldable and is_all:
                return {}
            if request.is_yieldable and request.rest_class < rank and len(claim.held) == 1:
                return {node: min(units, request.minimum) for node, units in claim.held.items()}
            return claim.held

        return self._without(stays)

    def _without(self, stays) -> dict[str, dict[str, float]]:
        found = {name: plus(node.total, node.other, -1) for name, node in self._usable()}
        for claim in self.book.claims.values():
            for node, units in stays(claim).items():
                if node in found:
                    found[node] = plus(found[node], claim.request.bundle, -units)
        return found


def _turn(claim: Claim) -> tuple[int, int]:
    """Its place in its class: minima first, then those with the fewest units beyond."""
    beyond = claim.size - claim.request.minimum
    return (0, 0) if beyond < 0 else (1, beyond)
