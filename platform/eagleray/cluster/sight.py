"""`Sight`: what is known of the nodes, from one look at the cluster to the next. Pure: no Ray, no clock."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from eagleray.capacity.claims import Claim, Node
from eagleray.capacity.decisions import Units
from eagleray.capacity.resources import Resources, plus

_BLIND_S = 4.0
"""What was seen longer ago is nothing to decide by."""
_SETTLES_S = 10.0
"""So long a GCS that has been restarted may not know all nodes again."""
_LEAVING_S = 1.0
"""How much later Ray may say that what was given back is free."""


@dataclass(frozen=True)
class Seen:
    """The cluster at one moment, as Ray says it."""

    nodes: tuple[Node, ...]
    """Those that live; what runs there without a claim is not known yet."""
    in_use: Mapping[str, Resources]
    """By node: all of it."""
    asked: Mapping[str, Resources]
    """By node: what the ledger's own asks have taken there; nothing of nodes where they have not."""
    do_others_wait: bool = False
    """Whether work of others waits for room: Ray puts it onto the next node that comes."""

    @property
    def is_idle(self) -> bool:
        """Whether no CPU and no GPU is in use."""
        return not any(used.get("CPU") or used.get("GPU") for used in self.in_use.values())


class Sight:
    """Changed by each look, and by what claims give back."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        """By id, with what runs there without a claim."""
        self.free: dict[str, Resources] = {}
        """By node: what Ray says is not in use."""
        self.gone: set[str] = set()
        """Nodes that were there once, or on which claims held something, and are not there."""
        self.trouble = ""
        """Why the cluster cannot be looked at, in words; empty where it can."""
        self._seen_s: float | None = None
        self.began_s = float("-inf")
        """When the look began that all this is from."""
        self._lost_s = float("-inf")
        self._leaving: list[tuple[float, str, Resources]] = []
        """Until when, where and what Ray may still show as in use though it was given back."""
        self._asked: dict[str, tuple[float, Resources]] = {}
        """By node: the same of the ledger's own asks."""

    @property
    def is_first(self) -> bool:
        """Whether there was no look yet."""
        return self._seen_s is None

    def blindness(self, now_s: float) -> str:
        """Why there is nothing to decide by, in words; empty where the last look is new enough."""
        if self.trouble:
            return self.trouble
        if self._seen_s is None:
            return "the cluster has not been looked at yet"
        age_s = now_s - self._seen_s
        if age_s <= _BLIND_S:
            return ""
        return f"not all of the cluster has been seen for {age_s:.0f} s; what is held goes on to hold"

    def lose(self, error: Exception, now_s: float) -> bool:
        """A look has failed; whether the one before had not."""
        is_new, self._lost_s = not self.trouble, now_s
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        self.trouble = f"the cluster cannot be observed ({reason}); what is held goes on to hold"
        return is_new

    def struck_out(self, claim: Claim) -> None:
        """`claim` is none any more, and what its holder said to run may run on: the next look tells."""
        self.nodes = {name: node.after_end_of(claim) for name, node in self.nodes.items()}

    def given_back(self, claim: Claim, units: Units, now_s: float) -> None:
        """`units` of `claim` were given back, or have ended."""
        for node, count in units.items():
            self._leaving.append((now_s + _LEAVING_S, node, plus({}, claim.request.bundle, count)))

    def take_in(
        self, seen: Seen, claims: Collection[Claim], began_s: float, now_s: float, *, unsaid_since_s: float
    ) -> bool:
        """A look that began at `began_s` has come in; whether it shows anything new.

        `unsaid_since_s` as `Node.with_use` takes it.
        """
        self.trouble = ""
        there = {node.id for node in seen.nodes}
        if now_s - self._lost_s < _SETTLES_S and not self.nodes.keys() <= there:
            return False  # a GCS that has been restarted learns of its nodes again
        self._leaving = [entry for entry in self._leaving if entry[0] > began_s]
        self._asked |= {node: (now_s + _LEAVING_S, asked) for node, asked in seen.asked.items()}
        self._asked = {node: entry for node, entry in self._asked.items() if entry[0] > began_s}
        leaving = {node: asked for node, (_, asked) in self._asked.items()}
        for _, node, resources in self._leaving:
            leaving[node] = plus(leaving.get(node, {}), resources)
        found = {}
        for node in seen.nodes:
            before, in_use = self.nodes.get(node.id), seen.in_use[node.id]
            if before is None and not self.is_first:
                # It has just come: no claim has anything there, only asks have. But who waited for it may
                # have taken it, and Ray not say so yet: then the next look tells.
                before = node
                if seen.do_others_wait:
                    in_use = node.total
            found[node.id] = node.with_use(
                in_use,
                claims,
                before,
                unsaid_since_s=unsaid_since_s,
                leaving=leaving.get(node.id, {}),
            )
        held_on = {node for claim in claims for node in claim.held}
        self.gone = (self.gone | self.nodes.keys() | held_on) - there
        has_changed, self.nodes = found != self.nodes, found
        self.began_s, self._seen_s = began_s, now_s
        self.free = {
            node.id: _free(node, seen.in_use[node.id], seen.asked.get(node.id, {})) for node in seen.nodes
        }
        return has_changed


def _free(node: Node, in_use: Resources, asked: Resources) -> dict[str, float]:
    """What is free; Ray may not say yet that `asked` is in use."""
    return {
        key: amount - max(in_use.get(key, 0.0), asked.get(key, 0.0)) for key, amount in node.total.items()
    }
