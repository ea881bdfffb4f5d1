"""What must hold in a simulated cluster, whatever has happened: no over-grant, no thrash, no floor taken."""

from __future__ import annotations

import math
from collections.abc import Mapping

from eagleray.capacity import (
    AskNodes,
    Book,
    Claim,
    ClaimClass,
    Decision,
    Expire,
    Grant,
    Node,
    Notice,
    Settings,
    Wait,
)
from eagleray.capacity.resources import num_fitting, plus


class Checked:
    """What the checks look at; the simulator sets all of it."""

    now_s: float
    book: Book
    nodes: dict[str, Node]
    settings: Settings
    decided: list[Decision]
    holders: Mapping[str, object]
    """By claim: those who live. What the others still hold, until they are struck out, nobody takes."""
    history: dict[str, list[tuple[float, str]]]
    """By claim: when what was decided about it."""

    def check(self, decided: list[Decision]) -> None:
        for decision in decided:
            if isinstance(decision, AskNodes):
                continue
            claim = self.book.claims[decision.claim]
            past = self.history.setdefault(claim.id, [])
            if isinstance(decision, Grant):
                self._check_grant(claim, decision, past)
            elif isinstance(decision, Notice):
                self._check_notice(claim, decision, past)
            if isinstance(decision, Expire):
                past.clear()  # when it comes again it is another claim
            elif not isinstance(decision, Wait):
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

    def check_nodes(self) -> None:
        """No node has more granted than it has; nor, where something was granted now, than others leave."""
        new = {
            (node, key)
            for decision in self.decided
            if isinstance(decision, Grant)
            for node in decision.units
            for key in self.book.claims[decision.claim].request.bundle
        }
        living = [claim for claim in self.book.claims.values() if claim.id in self.holders]
        for node in self.nodes.values():
            left = dict(node.total)
            for claim in living:
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
