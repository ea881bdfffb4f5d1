"""Whom to take room from: the lowest class first, and in it who loses least.

A planned change of size loses little, but stops every unit of the claim for a while, and what was not kept
since the last commit is at stake should it go wrong. What is nearly done soon gives all back by itself. Units
that are granted and do not run yet can go without anybody noticing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from eagleray.capacity.claims import Claim
from eagleray.capacity.decisions import Units
from eagleray.capacity.resources import TOLERANCE, Resources, plus
from eagleray.capacity.room import Need

_USELESS = -1
"""Rank of a gang that has lost some of its minimum: it computes nothing."""


@dataclass(frozen=True)
class Option:
    """What one claim could give back."""

    claim: Claim
    units: Units
    """One unit on the node in question, or all that it has."""
    rank: int
    loss_s: float
    is_suspension: bool = False

    @property
    def order(self) -> tuple[float, ...]:
        """Smallest first is taken; of two that lose the same, the one that came last."""
        return (self.rank, self.loss_s, -self.claim.opened_s)


def loss_s(claim: Claim) -> float:
    """Unit-seconds at stake: (seconds since the commit + restart) x units x (1 + progress)."""
    facts = claim.facts
    return (facts.since_commit_s + facts.restart_cost_s) * claim.size * (1 + facts.progress)


def options(need: Need, node: str, claims: Iterable[Claim], taken: Mapping[str, Units]) -> list[Option]:
    """What on `node` the need may have, in the order in which it is taken.

    Args:
        need: Whose rank has to be above that of what it takes.
        node: Where.
        claims: Those that may be given a notice now.
        taken: By claim: what it is to give back already; more of it loses no more.
    """
    found: list[Option] = []
    for claim in claims:
        if node not in claim.held or claim.id == need.claim.id:
            continue
        gone = taken.get(claim.id, {})
        left = {name: units - gone.get(name, 0) for name, units in claim.held.items()}
        left = {name: units for name, units in left.items() if units > 0}
        if node not in left:
            continue
        size, request = sum(left.values()), claim.request
        loss = 0.0 if gone else loss_s(claim)
        num_starting = claim.starting.get(node, 0) - gone.get(node, 0)
        num_spare = max(0, size - request.minimum) if request.is_gang else size
        for index in range(min(num_spare, left[node])):
            rank = claim.class_of(size - 1 - index)
            if rank < need.rank:
                found.append(Option(claim, {node: 1}, rank, 0.0 if index < num_starting else loss))
        if request.is_gang and (rank := _rank_of_all(claim, size, need)) is not None:
            found.append(Option(claim, left, rank, loss_s(claim), is_suspension=True))
    return sorted(found, key=lambda option: (*option.order, option.claim.id))


def _rank_of_all(claim: Claim, size: int, need: Need) -> int | None:
    """The rank at which all of a gang may be taken; None where it may not.

    Two gangs that each lost a part would wait for each other for ever: the one that came later gives way.
    """
    rank = claim.request.minimum_class
    is_useless = size < claim.request.minimum
    came_later = (claim.opened_s, claim.id) > (need.claim.opened_s, need.claim.id)
    if rank < need.rank or (is_useless and rank == need.rank and came_later):
        return _USELESS if is_useless else rank
    return None


def cheapest(lacking: Resources, node: str, ordered: Sequence[Option]) -> list[Option] | None:
    """The first of the `ordered` options that together free `lacking` on `node`; None where all do not.

    Of what was taken on the way, nothing stays that turned out not to be needed.
    """
    chosen: list[Option] = []
    for option in ordered:
        left = _left(lacking, node, chosen)
        if not left:
            break
        if any(option.claim.request.bundle.get(key, 0) > 0 for key in left):
            chosen.append(option)
    if _left(lacking, node, chosen):
        return None
    for option in reversed(chosen.copy()):
        without = [other for other in chosen if other is not option]
        if not _left(lacking, node, without):
            chosen = without
    return without_doubles(chosen)


def cost(chosen: Collection[Option]) -> tuple[float, float, float]:
    """The highest rank that is touched, the seconds lost by all claims, and how long ago the oldest came."""
    losses: dict[str, float] = {}
    for option in chosen:
        losses[option.claim.id] = max(option.loss_s, losses.get(option.claim.id, 0.0))
    oldest_s = max((-option.claim.opened_s for option in chosen), default=-math.inf)
    return max((option.rank for option in chosen), default=_USELESS - 1), sum(losses.values()), oldest_s


def _left(lacking: Resources, node: str, chosen: Iterable[Option]) -> dict[str, float]:
    left = dict(lacking)
    for option in without_doubles(chosen):
        left = plus(left, option.claim.request.bundle, -option.units.get(node, 0))
    return {key: left[key] for key in lacking if left[key] > TOLERANCE}


def without_doubles(chosen: Iterable[Option]) -> list[Option]:
    """A claim that gives all does not give a unit beside."""
    chosen = list(chosen)
    whole = {option.claim.id for option in chosen if option.is_suspension}
    return [option for option in chosen if option.is_suspension or option.claim.id not in whole]
