"""`Planner`: finds nodes for a need, from what is free or what others give back, and keeps track of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from eagleray.capacity import victims
from eagleray.capacity.claims import Claim, Node
from eagleray.capacity.resources import plus
from eagleray.capacity.room import Need, Reservation, Room


@dataclass
class _Plan:
    """What is taken from whom, and the room that it leaves. Copied, to try the units of a gang out."""

    room: Room
    taken: dict[str, Counter[str]] = field(default_factory=dict)
    """By claim, units by node."""
    suspended: frozenset[str] = frozenset()
    takers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By claim that gives: ids of those that need it."""

    def copy(self) -> _Plan:
        taken = {claim: units.copy() for claim, units in self.taken.items()}
        return _Plan(self.room.copy(), taken, self.suspended, dict(self.takers))

    def take(self, option: victims.Option, need: Need) -> None:
        """What `option` offers is for `need`; a suspension offers what is left, so nothing counts twice."""
        self.taken.setdefault(option.claim.id, Counter()).update(option.units)
        self.room.will_free(option.units, option.claim.request.bundle)
        if option.is_suspension:
            self.suspended |= {option.claim.id}
        takers = self.takers.get(option.claim.id, ())
        self.takers[option.claim.id] = tuple(dict.fromkeys((*takers, need.claim.id)))


class Planner:
    """The room of one round. Each call that finds something changes what those after it find."""

    def __init__(self, room: Room, claims: Sequence[Claim], may_be_asked: frozenset[str]):
        """Start with `room`, `claims` in their order, and the ids of those that may be given a notice."""
        self._claims, self._may_be_asked, self._plan = claims, may_be_asked, _Plan(room)
        self.granted: dict[str, Counter[str]] = {}
        """By claim, units by node."""
        self.kept: dict[str, list[str]] = {}
        """By claim that waits: nodes on which room is kept for it."""
        self._planned: dict[str, Counter[str]] = {}

    @property
    def room(self) -> Room:
        """What is left."""
        return self._plan.room

    @property
    def taken(self) -> Mapping[str, Counter[str]]:
        """By claim: what it is to give back, by node."""
        return self._plan.taken

    @property
    def takers(self) -> Mapping[str, tuple[str, ...]]:
        """By claim that is to give back: who needs it."""
        return self._plan.takers

    def num_granted(self, claim: Claim) -> int:
        """Units that the claim gets in this round."""
        return self.granted.get(claim.id, Counter()).total()

    def holders(self) -> list[Claim]:
        """The claims, holding what they are granted in this round, too."""
        granted = self.granted
        return [
            replace(claim, held=granted[claim.id] + Counter(claim.held)) if claim.id in granted else claim
            for claim in self._claims
        ]

    def places(self, need: Need, more: Mapping[str, int] | None = None) -> list[Node]:
        """Nodes that may have a unit: where one could ever lie, and the budget allows it beside `more`."""
        fitting, budget = self.room.fitting(need), need.claim.request.budget
        if budget is None:
            return fitting
        sources = [need.claim.held, more or {}]
        sources += [found.get(need.claim.id, {}) for found in (self.granted, self._planned)]
        on_demand = sum(
            units for source in sources for name, units in source.items() if self.room.is_on_demand(name)
        )
        return [node for node in fitting if not node.is_on_demand or on_demand < budget]

    def grant(self, need: Need) -> bool:
        """Whether all units of `need` fit into what is free; if so, they are granted."""
        room, found = self.room.copy(), Counter[str]()
        for _ in range(need.units):
            free = [node for node in self.places(need, found) if room.num_now(need, node.id)]
            if not free:
                return False
            best = min(free, key=lambda node: _preference(need, node, room))
            room.take(best.id, need.bundle)
            found[best.id] += 1
        self._plan.room = room
        self.granted.setdefault(need.claim.id, Counter()).update(found)
        return True

    def plan(self, need: Need) -> list[Claim] | None:
        """Who gives back so that all units of `need` find room, theirs from then on; None: they cannot."""
        plan, found = self._plan.copy(), Counter[str]()
        for _ in range(need.units):
            best = min(self._ways(need, plan, found), key=lambda way: way[0], default=None)
            if best is None:
                return None
            _, node, chosen = best
            for option in chosen:
                plan.take(option, need)
            plan.room.plan(node, need.bundle)
            found[node] += 1
        self._plan = plan
        self._planned.setdefault(need.claim.id, Counter()).update(found)
        return [
            claim
            for claim in self._claims
            if claim.id != need.claim.id
            and found.keys() & (claim.giving.keys() | plan.taken.get(claim.id, Counter()).keys())
        ]

    def _ways(
        self, need: Need, plan: _Plan, found: Counter[str]
    ) -> Iterator[tuple[tuple[object, ...], str, list[victims.Option]]]:
        """By node: what it costs to have a unit there, and what has to be taken."""
        asked = [c for c in self._claims if c.id in self._may_be_asked and c.id not in plan.suspended]
        for node in self.places(need, found):
            chosen: list[victims.Option] | None = []
            if not plan.room.num_later(need, node.id):
                ordered = victims.options(need, node.id, asked, plan.taken)
                chosen = victims.cheapest(plan.room.lacking(need, node.id), node.id, ordered)
            if chosen is not None:
                yield (victims.cost(chosen), _preference(need, node, plan.room)), node.id, chosen

    def givers_again(self, need: Need) -> list[Claim]:
        """Claims that obey a notice now, and could be asked for what `need` lacks once they have."""
        if not _could_fit(need, places := self.places(need)):
            return []
        obeying = [claim for claim in self._claims if claim.giving and claim.request.is_yieldable]
        given = {claim.id: claim.giving for claim in obeying}
        for node in places:
            ordered = victims.options(need, node.id, obeying, given)
            if victims.cheapest(self.room.lacking(need, node.id), node.id, ordered) is not None:
                return list({option.claim.id: option.claim for option in ordered}.values())
        return []

    def reserve(self, need: Need, *, is_aged: bool = False, stays: bool = False) -> bool:
        """Keep room for a need that has to wait, on the nodes that lack least, if it could ever fit.

        Args:
            need: What waits.
            is_aged: Whether its equals must leave it alone, too.
            stays: Whether it is kept where the round before kept it.

        Returns:
            Whether there will be room for all of it, beside what is kept for the same claim already.
        """
        places = self.places(need)
        if not _could_fit(need, places):
            return False
        room, names, claim = self.room.copy(), [node.id for node in places], need.claim
        kept, has_room = self.kept.setdefault(claim.id, []), True
        for chosen in kept:
            room.plan(chosen, need.bundle)
        earlier = list(claim.wait.kept_on[len(kept) :]) if claim.wait and stays else []
        for _ in range(need.units):
            chosen = earlier.pop(0) if earlier else ""
            if chosen not in names:
                chosen = min(names, key=lambda name: (self._distance(need, name, room), name))
            has_room &= room.num_later(need, chosen) > 0
            room.plan(chosen, need.bundle)
            kept.append(chosen)
            self.room.reserve(Reservation(need, chosen, is_aged))
        return has_room

    def _distance(self, need: Need, node: str, room: Room) -> float:
        """How far the node is from having room for a unit, in units, without what could be taken back."""
        lacking = room.lacking(need, node)
        movable = [claim for claim in self._claims if claim.request.is_yieldable]
        for option in victims.without_doubles(victims.options(need, node, movable, {})):
            lacking = plus(lacking, option.claim.request.bundle, -option.units[node])
        return max(lacking.get(key, 0) / amount for key, amount in need.bundle.items() if amount > 0)


def _could_fit(need: Need, places: Iterable[Node]) -> bool:
    """Whether all units would have room if no other claim held anything."""
    return sum(node.num_empty(need.bundle) for node in places) >= need.units


def _preference(need: Need, node: Node, room: Room) -> tuple[float | str, ...]:
    """Smallest first: wastes no GPU, is fullest afterwards, has units of the same claim, by name."""
    wasted = node.total.get("GPU", 0) if not need.bundle.get("GPU") else 0
    left = sum(
        (room.left(node.id).get(key, 0) - amount) / node.total[key]
        for key, amount in need.bundle.items()
        if amount > 0
    )
    return (wasted, round(left, 6), -need.claim.held.get(node.id, 0), node.id)
