"""`Side`: all that the ledger needs of a cluster, so that its work is tested without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from eagleray.capacity.decisions import Ask, Units
from eagleray.capacity.placement import Capacity
from eagleray.capacity.resources import Resources
from eagleray.cluster.sight import Seen


@dataclass(frozen=True)
class Held:
    """Units of one claim on one node."""

    node: str
    bundle: Resources
    units: int


class Side(Protocol):
    """The cluster, as the ledger sees and changes it. Methods block, and may raise while the GCS is away."""

    def observe(self, capacity: Capacity, *, with_asks: bool) -> Seen:
        """The cluster now. `with_asks`: the ledger's own asks may have taken room there."""
        ...

    def capacity(self) -> Capacity:
        """What the cluster can ever have."""
        ...

    def ask(self, asks: Sequence[Ask], free: Mapping[str, Resources]) -> bool:
        """Have nodes started for `asks` alone, beside those that are there; whether asks are left.

        `free`: on each node that is there, with what claims were granted and have not taken yet.
        """
        ...

    def settle(self, free: Mapping[str, Resources]) -> None:
        """Free what asks have taken on nodes that have come; the other asks stay."""
        ...

    def evict(self, claim: str, units: Units, keep: Units) -> Mapping[str, int]:
        """End units of a claim by force, but never those that it is to `keep`; by node, those that ended."""
        ...

    def tell(self, held: Sequence[Held], totals: Mapping[str, Resources]) -> None:
        """Let others on the cluster know what is held under claims; `totals`: of all nodes."""
        ...

    def end(self) -> None:
        """Leave nothing behind on the cluster."""
        ...
