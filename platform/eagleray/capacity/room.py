"""What is left on each node while decisions are made: now, and once every notice has been obeyed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from eagleray.capacity.claims import Claim, ClaimClass, Node
from eagleray.capacity.decisions import Units
from eagleray.capacity.resources import TOLERANCE, Resources, missing, num_fitting, plus


@dataclass(frozen=True)
class Need:
    """Units that a claim lacks; they are granted together or not at all."""

    claim: Claim
    units: int
    rank: ClaimClass
    is_rest: bool = False
    """One unit above the minimum."""

    @property
    def bundle(self) -> Resources:
        """Of one unit."""
        return self.claim.request.bundle


@dataclass(frozen=True)
class Reservation:
    """Room on a node for one unit of a need that nothing can be done for but wait."""

    need: Need
    node: str
    is_aged: bool

    def binds(self, other: Need) -> bool:
        """Whether `other`, whose turn is later, must leave the room alone.

        It need not where it would give the room back on notice, or where both are of one class and the wait
        was not long yet.
        """
        if other.claim.id == self.need.claim.id:
            return False
        if other.rank < self.need.rank:
            return not other.claim.request.is_yieldable
        return self.is_aged


class Room:
    """What nodes that may be granted have left. Mutable; `copy` to try something out."""

    def __init__(self, nodes: Iterable[Node], claims: Iterable[Claim]):
        self.nodes = {node.id: node for node in sorted(nodes, key=lambda node: node.id)}
        self._now = {node.id: plus(node.total, node.other, -1) for node in self.nodes.values()}
        for claim in claims:
            for node, units in claim.held.items():
                if node in self._now:
                    self._now[node] = plus(self._now[node], claim.request.bundle, -units)
        self._later = dict(self._now)
        self._reservations: list[Reservation] = []
        self._fitting: dict[str, list[Node]] = {}
        """By claim; nodes do not change, so copies share it."""
        for claim in claims:
            self.will_free(claim.giving, claim.request.bundle)

    def copy(self) -> Room:
        """Another one, that may be changed by itself."""
        copied = Room((), ())
        copied.nodes, copied._fitting = self.nodes, self._fitting
        copied._now, copied._later = dict(self._now), dict(self._later)
        copied._reservations = list(self._reservations)
        return copied

    def fitting(self, need: Need) -> list[Node]:
        """The nodes with the labels and, if nothing else were on them, the room for a unit."""
        found = self._fitting.get(need.claim.id)
        if found is None:
            selector = need.claim.request.label_selector
            matching = [node for node in self.nodes.values() if node.matches(selector)]
            found = [node for node in matching if num_fitting(need.bundle, node.total)]
            self._fitting[need.claim.id] = found
        return found

    def is_on_demand(self, node: str) -> bool:
        """Whether the node costs as long as it is there; False of one that may not be granted."""
        return node in self.nodes and self.nodes[node].is_on_demand

    def num_now(self, need: Need, node: str) -> int:
        """Units for which there is room, even when everything planned has come true."""
        return min(
            num_fitting(need.bundle, self._now[node]), num_fitting(need.bundle, self._open(need, node))
        )

    def num_later(self, need: Need, node: str) -> int:
        """Units for which there will be room."""
        return num_fitting(need.bundle, self._open(need, node))

    def lacking(self, need: Need, node: str) -> dict[str, float]:
        """What would still have to be given back for one unit."""
        return missing(need.bundle, self._open(need, node))

    def left(self, node: str) -> Resources:
        """What is free now; below 0 where more is in use than the node has."""
        return self._now[node]

    def is_overdrawn_without(self, units: Units, bundle: Resources) -> bool:
        """Whether what is planned needs these `units` to be given back."""
        return any(
            amount < -TOLERANCE
            for node, count in units.items()
            if node in self._later
            for key, amount in plus(self._later[node], bundle, -count).items()
            if key in bundle
        )

    def take(self, node: str, bundle: Resources) -> None:
        """A unit is granted."""
        self._now[node] = plus(self._now[node], bundle, -1)
        self.plan(node, bundle)

    def plan(self, node: str, bundle: Resources) -> None:
        """A unit will be granted once there is room."""
        self._later[node] = plus(self._later[node], bundle, -1)

    def will_free(self, units: Units, bundle: Resources, times: int = 1) -> None:
        """These units will be given back (with `times` -1: they will not, after all)."""
        for node, count in units.items():
            if node in self._later:
                self._later[node] = plus(self._later[node], bundle, times * count)

    def reserve(self, reservation: Reservation) -> None:
        """Keep room for a unit of a blocked need, from those whom that binds."""
        self._reservations.append(reservation)

    def _open(self, need: Need, node: str) -> Resources:
        found = self._later[node]
        for kept in self._reservations:
            if kept.node == node and kept.binds(need):
                found = plus(found, kept.need.bundle, -1)
        return found
