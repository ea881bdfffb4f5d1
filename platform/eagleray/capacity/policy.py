"""`decide`: who gets which units on which node, who gives back, and what waits for what.

Needs are met from the highest class down; among equals minima come before the rest, then who came first, and
the rests are dealt out one unit each in turn. A need is met from what is free, else from what notices free,
else by new notices to claims of lower classes. What it is to get is out of reach for those after it. Where
nothing can be done, or not just now, room is kept for it, which meanwhile only those may use who would give
it back on notice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from eagleray.capacity import asking, words
from eagleray.capacity.claims import Claim, ClaimClass, Observation, Settings
from eagleray.capacity.decisions import (
    Ask,
    AskNodes,
    Cause,
    Decision,
    Evict,
    Expire,
    Grant,
    Notice,
    Suspend,
    Units,
    Wait,
    Withdraw,
)
from eagleray.capacity.planning import Planner
from eagleray.capacity.resources import TOLERANCE
from eagleray.capacity.room import Need, Room

DEFAULTS = Settings()


def decide(observation: Observation, settings: Settings = DEFAULTS) -> list[Decision]:
    """What is to be done now; nothing is left to do where only `Wait` and `AskNodes` come back.

    The same observation gives the same decisions, in the same order. It keeps no state: what it decided
    before it reads from the claims (`Book.carry_out` puts it there).
    """
    return _Round(observation, settings).decisions()


@dataclass(frozen=True)
class _Unmet:
    need: Need
    cause: Cause
    waits_for: tuple[str, ...]
    reason: str


class _Round:
    """One call of `decide`: works through the needs, then reads the decisions off the plan."""

    def __init__(self, observation: Observation, settings: Settings):
        self._now, self._settings, self._capacity = observation.time_s, settings, observation.capacity
        self._nodes = {node.id: node for node in sorted(observation.nodes, key=lambda node: node.id)}
        self._usable = {node.id: node for node in self._nodes.values() if not node.is_draining}
        ordered = sorted(observation.claims, key=lambda claim: (claim.opened_s, claim.id))
        everything = [claim.on(self._nodes) for claim in ordered]
        self._expired = [c for c in everything if self._now - c.renewed_s > settings.lease_s]
        self._claims = [c for c in everything if self._now - c.renewed_s <= settings.lease_s]
        self._by_id = {claim.id: claim for claim in self._claims}
        may_be_asked = frozenset(claim.id for claim in self._claims if self._may_be_asked(claim))
        room = Room(self._usable.values(), everything)
        self._planner = Planner(room, self._claims, may_be_asked)
        self._ranks: dict[str, Counter[ClaimClass]] = {}
        self._unmet: dict[str, list[_Unmet]] = {}
        self._lacks: dict[str, tuple[Need, int]] = {}
        self._full: set[str] = set()
        """Claims for which no more room can be kept than is."""

    def decisions(self) -> list[Decision]:
        for need in self._needs():
            self._meet(need)
        notices, withdrawals = list(self._notices()), list(self._withdrawals())
        return [
            *self._expiries(),
            *self._grants(),
            *notices,
            *withdrawals,
            *self._evictions({withdrawn.claim for withdrawn in withdrawals}),
            *self._asks(),
            *self._waits(),
        ]

    # What is needed, in its order, and how each need is met.

    def _needs(self) -> list[Need]:
        """All that claims lack, in the order in which it is met."""
        needs: list[tuple[tuple[float | str, ...], Need]] = []
        for claim in self._claims:
            request, came = claim.request, (claim.opened_s, claim.id)
            size = self._staying(claim)
            if size < request.minimum:
                rank, lacking = request.minimum_class, request.minimum - size
                for count in [lacking] if request.is_gang else [1] * lacking:
                    needs.append(((-rank, 0, 0, *came), Need(claim, count, rank)))
            for index in range(max(size, request.minimum), request.wanted):
                rank, turn = request.rest_class, index - request.minimum
                needs.append(((-rank, 1, turn, *came), Need(claim, 1, rank, is_rest=True)))
        return [need for _, need in sorted(needs, key=lambda entry: entry[0])]

    def _staying(self, claim: Claim) -> int:
        """Its units that neither a notice nor a draining node takes away; a plain job's cannot be moved."""
        if not claim.request.is_yieldable:
            return claim.size
        kept = claim.held if claim.notice is None else claim.keep
        return sum(
            min(units, claim.held.get(node, 0)) for node, units in kept.items() if node in self._usable
        )

    def _meet(self, need: Need) -> None:
        claim, missed = need.claim, self._unmet.get(need.claim.id)
        is_to_give_back = claim.notice is not None or claim.id in self._planner.taken
        if is_to_give_back and (need.is_rest or claim.request.is_gang):
            self._keep(need)
        elif missed and need.is_rest and _is_hopeless_after(missed):
            self._miss(need, missed[-1].cause, missed[-1].waits_for, missed[-1].reason)
        elif self._is_cooling(need):
            self._miss(need, "cool_down", (), "gave back, or grew, a moment ago")
            self._keep(need)
        elif self._planner.grant(need):
            self._ranks.setdefault(claim.id, Counter())[need.rank] += need.units
        elif (givers := self._planner.plan(need)) is not None:
            self._miss(need, "yield", _ids(givers), words.yields(givers))
        else:
            self._block(need)

    def _is_cooling(self, need: Need) -> bool:
        claim, settings = need.claim, self._settings
        if need.rank >= ClaimClass.SERVING_BURST:
            return False
        if self._is_recent(claim.noticed_s, settings.cool_down_s):
            return need.is_rest or claim.size == 0
        is_growth = need.is_rest and claim.request.is_gang and claim.size > 0
        return is_growth and self._is_recent(claim.granted_s, settings.grow_every_s)

    def _keep(self, need: Need) -> None:
        """Keep room for what may have none just now: a plain job would not give it back afterwards."""
        if need.claim.id not in self._full and not self._planner.reserve(need):
            self._full.add(need.claim.id)

    def _block(self, need: Need) -> None:
        """Nothing can be done but wait: say why, keep room, and ask for nodes."""
        claim, planner = need.claim, self._planner
        if givers := planner.givers_again(need):
            self._miss(need, "yield", _ids(givers), words.yields(givers))
        else:
            places = planner.places(need)
            budget, fitting = claim.request.budget, planner.room.fitting(need)
            is_too_much = budget is not None and need.units > budget and not fitting
            is_over_budget = is_too_much or len(places) < len(fitting)
            cause, waits_for, reason = words.blocked(
                need, self._usable.values(), planner.room, planner.holders(), is_over_budget=is_over_budget
            )
            self._miss(need, cause, waits_for, reason)
            # What is in use may be told late; what nodes have is not.
            is_sure = cause in ("size", "labels")
            if is_sure or self._has_waited(claim, self._settings.ask_after_s):
                num_here = sum(planner.room.num_later(need, node.id) for node in places)
                self._lacks.setdefault(claim.id, (need, num_here))
        is_starting = not need.is_rest or claim.size == 0
        is_aged = is_starting and self._has_waited(claim, self._settings.patience_s)
        planner.reserve(need, is_aged=is_aged, stays=True)

    def _miss(self, need: Need, cause: Cause, waits_for: tuple[str, ...], reason: str) -> None:
        self._unmet.setdefault(need.claim.id, []).append(_Unmet(need, cause, waits_for, reason))

    def _may_be_asked(self, claim: Claim) -> bool:
        is_settled = not self._is_recent(claim.withdrawn_s, self._settings.after_withdrawal_s)
        return claim.request.is_yieldable and claim.notice is None and is_settled

    def _is_recent(self, at_s: float | None, span_s: float) -> bool:
        return at_s is not None and self._now - at_s < span_s

    def _has_waited(self, claim: Claim, span_s: float) -> bool:
        return claim.waiting_s is not None and self._now - claim.waiting_s >= span_s

    # The decisions.

    def _expiries(self) -> Iterator[Expire]:
        for claim in self._expired:
            limit_s = self._settings.lease_s
            yield Expire(claim.id, f"{claim.request.holder} has not been heard of for {limit_s:g} s")

    def _grants(self) -> Iterator[Grant]:
        for claim_id, units in self._planner.granted.items():
            reason = words.granted(self._by_id[claim_id].request.bundle, self._ranks[claim_id])
            yield Grant(claim_id, dict(sorted(units.items())), reason)

    def _notices(self) -> Iterator[Notice]:
        planner = self._planner
        for claim_id, units in planner.taken.items():
            takers = [self._by_id[taker] for taker in planner.takers[claim_id]]
            ranks = {taker.class_of(self._staying(taker)) for taker in takers}
            reason = words.needed_by(takers, ranks)
            yield self._notice(self._by_id[claim_id], units, reason, planner.takers[claim_id])
        for claim in self._claims:
            if claim.notice is None and claim.id not in planner.taken:
                yield from self._leave(claim)

    def _leave(self, claim: Claim) -> Iterator[Notice]:
        """A notice to leave nodes that go, or to give up starting where something else has the place."""
        draining = {node: units for node, units in claim.held.items() if self._nodes[node].is_draining}
        if draining and claim.request.is_yieldable:
            times = [self._nodes[node].leaves_s for node in draining]
            leaves_s = min((at_s for at_s in times if at_s is not None), default=None)
            names = [self._nodes[node].name or node for node in draining]
            yield self._notice(claim, draining, words.leaving(names), (), leaves_s)
        elif not self._is_recent(claim.granted_s, self._settings.start_limit_s):
            stuck = {node: units for node, units in claim.starting.items() if self._is_overdrawn(claim, node)}
            if stuck:
                yield self._notice(claim, stuck, "something else has taken the place", ())

    def _has_to_leave(self, claim: Claim, node: str) -> bool:
        """Whether a notice that nobody else needs still holds there."""
        is_starting = claim.starting.get(node, 0) > 0
        return self._nodes[node].is_draining or is_starting or self._is_overdrawn(claim, node)

    def _is_overdrawn(self, claim: Claim, node: str) -> bool:
        if node not in self._usable:
            return False
        left = self._planner.room.left(node)
        return any(
            left.get(key, 0) < -TOLERANCE for key, amount in claim.request.bundle.items() if amount > 0
        )

    def _notice(
        self,
        claim: Claim,
        units: Units,
        reason: str,
        takers: tuple[str, ...],
        leaves_s: float | None = None,
    ) -> Notice:
        deadline_s = self._now + claim.request.yield_s if leaves_s is None else leaves_s
        size = claim.size - sum(units.values()) + self._planner.num_granted(claim)
        is_too_small = size < claim.request.minimum
        if claim.request.is_gang and is_too_small:
            return Suspend(claim.id, dict(sorted(claim.held.items())), 0, deadline_s, reason, takers)
        return Notice(claim.id, dict(sorted(units.items())), size, deadline_s, reason, takers)

    def _withdrawals(self) -> Iterator[Withdraw]:
        """Notices that nothing planned needs; and those that would leave a gang too small by now."""
        room = self._planner.room
        for claim in self._claims:
            notice, request = claim.notice, claim.request
            if notice is None or not claim.giving:
                continue
            if not notice.wanted_by and not any(self._has_to_leave(claim, node) for node in claim.giving):
                yield Withdraw(claim.id, "it runs by now")  # it was only late to say so
                continue
            if self._is_recent(claim.evicted_s, self._settings.evict_every_s):
                continue  # it is being ended now
            is_shrinking_gang = request.is_gang and not claim.is_suspending
            if is_shrinking_gang and self._staying(claim) < request.minimum:
                yield Withdraw(claim.id, "what it would keep is less than its minimum by now")
            elif notice.wanted_by and not room.is_overdrawn_without(claim.giving, request.bundle):
                room.will_free(claim.giving, request.bundle, -1)
                yield Withdraw(claim.id, "nothing needs it any more")

    def _evictions(self, withdrawn: set[str]) -> Iterator[Evict]:
        for claim in self._claims:
            notice, units = claim.notice, dict(sorted(claim.giving.items()))
            if notice is None or not units or self._now < notice.deadline_s or claim.id in withdrawn:
                continue
            if not self._is_recent(claim.evicted_s, self._settings.evict_every_s):
                reason = f"not given back in time ({notice.reason})"
                yield Evict(claim.id, units, claim.size - sum(units.values()), reason)

    def _asks(self) -> Iterator[AskNodes]:
        lacks = []
        for claim_id, (need, num_here) in self._lacks.items():
            missed = self._unmet[claim_id]
            count = sum(unmet.need.units for unmet in missed if unmet.cause not in ("yield", "cool_down"))
            if (budget := need.claim.request.budget) is not None:
                on_demand = sum(
                    units for name, units in need.claim.held.items() if self._nodes[name].is_on_demand
                )
                count = min(count, budget - on_demand)
            ask = Ask(claim_id, need.bundle, need.claim.request.label_selector, count)
            lacks.append(asking.Lack(ask, num_here, need.units))
        if asks := asking.possible(lacks, self._capacity, self._nodes.values()):
            yield AskNodes(asks)

    def _waits(self) -> Iterator[Wait]:
        for claim in self._claims:
            if missed := self._unmet.get(claim.id):
                first, units = missed[0], sum(unmet.need.units for unmet in missed)
                kept_on = tuple(self._planner.kept.get(claim.id, ()))
                yield Wait(claim.id, units, first.cause, first.waits_for, first.reason, kept_on)


def _is_hopeless_after(missed: Sequence[_Unmet]) -> bool:
    """Whether another unit would fare no better: of the same bundle, or of a gang without its minimum."""
    is_gang_without = missed[0].need.claim.request.is_gang and not missed[0].need.is_rest
    cause = missed[-1].cause
    return cause != "cool_down" and (is_gang_without or cause != "yield")


def _ids(claims: Iterable[Claim]) -> tuple[str, ...]:
    return tuple(claim.id for claim in claims)
