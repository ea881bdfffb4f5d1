"""What the policy decides: frozen values, which the ledger carries out and writes down.

Grant     the claim may take so many units on these nodes
Notice    its holder is to give units on these nodes back by a deadline
Suspend   a notice of a holder that cannot go on with less: it commits, gives all back and queues again
Evict     the deadline passed: what a notice asked for is ended by force
Withdraw  a notice that nothing needs any more
Expire    the holder has not been heard of for too long: the claim is struck out
AskNodes  what waits, and would fit on nodes that can be started
Wait      why a claim has not got what it asks for
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from eagleray.capacity.resources import Resources

Units = Mapping[str, int]
"""Units of a claim's bundle by node id."""

Cause = Literal["yield", "held", "fragments", "unclaimed", "size", "labels", "budget", "cool_down"]
"""yield: others give back what it needs. held: claims that it may not touch have it. fragments: there is
enough, but on no one node. unclaimed: what runs without a claim has it. size, labels: no node is large enough
or has the labels. budget: it may have no more nodes started. cool_down: it gave back, or grew, just now."""


@dataclass(frozen=True)
class Grant:
    """The claim may take `units` more."""

    claim: str
    units: Units
    reason: str


@dataclass(frozen=True)
class Notice:
    """The holder is to give `give` back by `deadline_s`, and goes on with `new_size` units."""

    claim: str
    give: Units
    new_size: int
    deadline_s: float
    """On the observation's clock."""
    reason: str
    wanted_by: tuple[str, ...] = ()
    """Ids of the claims that need it; empty where the node itself leaves: such a notice is not withdrawn."""


@dataclass(frozen=True)
class Suspend(Notice):
    """A notice with `new_size` 0 to a holder that is of no use below its minimum."""


@dataclass(frozen=True)
class Evict:
    """End `units` of the claim by force; its holder goes on with `new_size`, and loses what is not kept."""

    claim: str
    units: Units
    new_size: int
    reason: str


@dataclass(frozen=True)
class Withdraw:
    """The claim's notice does not hold any more; what was already given back is granted anew in its turn."""

    claim: str
    reason: str


@dataclass(frozen=True)
class Expire:
    """Strike the claim out; what may still run of it counts as running without a claim."""

    claim: str
    reason: str


@dataclass(frozen=True)
class Ask:
    """`count` bundles of one claim, on nodes with the labels of `label_selector`."""

    claim: str
    bundle: Resources
    label_selector: Mapping[str, str]
    count: int
    num_new: int = 0
    """Of them: those for which the nodes that are there have no room."""


@dataclass(frozen=True)
class AskNodes:
    """All that nodes should be there for, beside what is held; without this decision, nothing is."""

    asks: tuple[Ask, ...]


@dataclass(frozen=True)
class Wait:
    """`units` of the claim are not there. Equal from round to round as long as nothing has changed."""

    claim: str
    units: int
    cause: Cause
    waits_for: tuple[str, ...]
    """Ids of claims that give back, or that would have to."""
    reason: str
    kept_on: tuple[str, ...] = ()
    """Nodes on which room is kept for it. The next round keeps it there, too: else others' coming and going
    would move it about, and who was told to make room for one would find it kept for another."""


Decision = Grant | Notice | Suspend | Evict | Withdraw | Expire | AskNodes | Wait
