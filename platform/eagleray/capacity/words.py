"""Why, in words: what `eagleray status` and the event log say."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from eagleray.capacity.claims import Claim, ClaimClass, Node
from eagleray.capacity.decisions import Cause
from eagleray.capacity.placement import amounts
from eagleray.capacity.resources import Resources, num_fitting
from eagleray.capacity.room import Need, Room


def granted(bundle: Resources, ranks: Mapping[ClaimClass, int]) -> str:
    """For instance "2 x (1 CPU): 1 training minimum, 1 training share"."""
    parts = ", ".join(f"{units} {rank.words}" for rank, units in sorted(ranks.items(), reverse=True))
    return f"{sum(ranks.values())} x ({amounts(bundle)}): {parts}"


def holders(claims: Iterable[Claim]) -> str:
    """The holders' names, each once."""
    names = list(dict.fromkeys(claim.request.holder for claim in claims))
    return ", ".join(names[:-1]) + (" and " if names[:-1] else "") + names[-1] if names else "nobody"


def yields(givers: Sequence[Claim]) -> str:
    """The reason of a wait for notices."""
    if not givers:
        return "waits for what is being given back"
    return f"waits for {holders(givers)} to give back what it needs"


def needed_by(takers: Sequence[Claim], ranks: Collection[ClaimClass]) -> str:
    """The reason of a notice for the sake of `takers`, whose units are of `ranks`."""
    return f"needed by {holders(takers)} ({', '.join(rank.words for rank in sorted(ranks, reverse=True))})"


def leaving(nodes: Collection[str]) -> str:
    """The reason of a notice because nodes are drained."""
    return f"node{'s' if len(nodes) > 1 else ''} {', '.join(sorted(nodes))} will go"


def blocked(
    need: Need, nodes: Collection[Node], room: Room, claims: Iterable[Claim], *, is_over_budget: bool
) -> tuple[Cause, tuple[str, ...], str]:
    """Why a need finds no room and nobody to take it from: cause, claims in the way, reason.

    Args:
        need: Of which a unit finds no room.
        nodes: All nodes that may be granted.
        room: What is left on them.
        claims: All claims.
        is_over_budget: Whether nodes were left out because of the claim's budget.
    """
    selector = need.claim.request.label_selector
    labelled = [node for node in nodes if node.matches(selector)]
    unit = f"{need.units} x ({amounts(need.bundle)})" if need.units > 1 else amounts(need.bundle)
    if is_over_budget:
        budget = need.claim.request.budget
        return "budget", (), f"its budget allows {budget} units on nodes that are started on demand"
    if not labelled:
        labels = ", ".join(f"{key}={value}" for key, value in selector.items())
        return "labels", (), f"no node has {labels}" if labels else "there is no node"
    fitting = [node for node in labelled if num_fitting(need.bundle, node.total)]
    if sum(num_fitting(need.bundle, node.total) for node in fitting) < need.units:
        return (
            "size",
            (),
            f"no room for {unit} on the nodes that there are ({len(labelled)}), even empty ones",
        )
    if sum(node.num_empty(need.bundle) for node in fitting) < need.units:
        return "unclaimed", (), f"what runs without a claim leaves no room for {unit}"
    there = {node.id for node in fitting}
    in_the_way = tuple(
        claim
        for claim in claims
        if claim.id != need.claim.id
        and there & set(claim.held)
        and set(claim.request.bundle) & set(need.bundle)
    )
    ids = tuple(claim.id for claim in in_the_way)
    if sum(num_fitting(need.bundle, room.left(node.id)) for node in fitting) >= need.units:
        return "held", ids, f"room for {unit} is free, and kept for claims that come first"
    if _is_enough_in_sum(need, fitting, room):
        return "fragments", ids, f"{unit} is free in all, but not on one node, where a unit has to fit"
    if not in_the_way and not need.claim.size:
        return "held", (), "what it needs was held by a claim that ends just now"
    if not in_the_way:
        return "held", (), "it has all that there is"
    return "held", ids, f"what it needs is held by {holders(in_the_way)}, and may not be taken from there now"


def _is_enough_in_sum(need: Need, nodes: Iterable[Node], room: Room) -> bool:
    left = [room.left(node.id) for node in nodes]
    return all(
        sum(max(0.0, free.get(key, 0.0)) for free in left) >= need.units * amount
        for key, amount in need.bundle.items()
    )
