"""What a holder says to the ledger and hears from it, in one exchange that does everything.

A holder states, each second and when something changes, all that it asks for and all that it has. The answer
is all that it may have. So opening, renewing, asking for more or less, giving back, and telling that a grant
or a notice has been seen are one call. A lost one is made good by the next, and a ledger that starts anew
knows from the next statements who holds what.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from eagleray.capacity.claims import Claim, Facts, Request
from eagleray.capacity.decisions import Units


@dataclass(frozen=True)
class Allotment:
    """What a holder may have from now on, by node."""

    version: int = 0
    units: Units = field(default_factory=dict)
    """All of them. Fewer on some node than before: those are to be given back by the deadline."""
    deadline_s: float | None = None
    """Seconds from the answer, where something is to be given back; then it is ended by force."""
    is_suspension: bool = False
    """Commit, give everything back, and wait: the claim is queued again."""
    reason: str = ""

    @property
    def size(self) -> int:
        """Units in all. A service runs min(desired, size) replicas, a search so many trials."""
        return sum(self.units.values())


@dataclass(frozen=True)
class Statement:
    """All that a holder asks for and has."""

    request: Request
    seen: int = 0
    """The version of the last allotment it took notice of. What it holds counts only with the newest."""
    held: Units = field(default_factory=dict)
    """What it has or means to take of what it was allotted; what is missing here has been given back."""
    used: Units = field(default_factory=dict)
    """Of those, what runs."""
    facts: Facts = field(default_factory=Facts)
    asked_s: float = 0.0
    """For how many seconds a ledger has known of it: a new one gives it the same place among equals."""
    lacked_s: float = 0.0
    """The same since it held anything last: so long it waits already."""

    def without(self, nodes: Collection[str]) -> Statement:
        """The same, with nothing on `nodes`."""
        held, used = (
            {node: units for node, units in stated.items() if node not in nodes}
            for stated in (self.held, self.used)
        )
        return replace(self, held=held, used=used)


class ClaimClient(Protocol):
    """The ledger, from a holder's side. It may be away: then the last allotment goes on to hold."""

    def exchange(self, statement: Statement) -> Allotment | None:
        """Say everything; what may be had from now on. None where the ledger does not answer.

        Raises:
            InputError: the claim is known with another bundle.
            CapacityError: its minimum could never be placed.
        """
        ...

    def wait(self, claim: str, seen: int, timeout_s: float) -> Allotment | None:
        """The allotment as soon as it is another than version `seen`.

        None after `timeout_s`, and at once where the claim is closed meanwhile.
        """
        ...

    def close(self, claim: str) -> None:
        """Give everything back for good."""
        ...


def allotment(claim: Claim, now_s: float) -> Allotment:
    """What the claim's holder is told."""
    notice = claim.notice
    if notice is None or not claim.giving:
        return Allotment(claim.version, _some(claim.held))
    deadline_s = max(0.0, notice.deadline_s - now_s)
    kept = {node: min(units, claim.held.get(node, 0)) for node, units in claim.keep.items()}
    return Allotment(claim.version, _some(kept), deadline_s, claim.is_suspending, notice.reason)


def _some(units: Mapping[str, int]) -> dict[str, int]:
    return {node: count for node, count in sorted(units.items()) if count > 0}
