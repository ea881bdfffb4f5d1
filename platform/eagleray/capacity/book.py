"""`Book`: the claims as the ledger has them, and what statements and decisions make of them.

The ledger's whole work is: `exchange` what holders state, observe the nodes, `decide`, `carry_out`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from eagleray.capacity.claims import Claim
from eagleray.capacity.client import Statement
from eagleray.capacity.decisions import (
    Ask,
    AskNodes,
    Decision,
    Evict,
    Expire,
    Grant,
    Notice,
    Units,
    Wait,
    Withdraw,
)
from eagleray.capacity.placement import amounts
from eagleray.errors import InputError


@dataclass(frozen=True)
class Book:
    """Claims by id, and what the last round asked nodes for. Each method returns another book."""

    claims: Mapping[str, Claim] = field(default_factory=dict)
    asks: tuple[Ask, ...] = ()
    """What nodes are asked for."""

    def exchange(self, statement: Statement, now_s: float) -> Book:
        """After a holder has stated what it asks for and has.

        A claim that is not known is taken up with what it holds, in the place that it had: so a new ledger
        learns of old grants, and of the queue.

        Raises:
            InputError: the claim is known with another bundle.
        """
        request = statement.request
        claim = self.claims.get(request.claim)
        if claim is None:
            held = _most(statement.held, statement.used)
            claim = Claim(
                request,
                now_s - statement.asked_s,
                now_s,
                held,
                granted_s=now_s if held else None,
                waiting_s=None if held or not statement.lacked_s else now_s - statement.lacked_s,
                version=statement.seen,
            )
        elif claim.request.bundle != request.bundle:
            raise InputError(
                f"claim of {request.holder}: a unit is {amounts(request.bundle)}, and the claim {claim.id} "
                f"was opened with {amounts(claim.request.bundle)}; close it, or use another id"
            )
        held = claim.held
        if statement.seen == claim.version:  # an older one does not know of the last grants
            stated = {node: min(units, held.get(node, 0)) for node, units in statement.held.items()}
            held = _some(stated)
        # What has ended does not run, whatever its holder still says.
        used = {
            node: min(units, held.get(node, 0)) if node in claim.ended_on else units
            for node, units in statement.used.items()
        }
        held = _most(held, used)
        # A version that was not given here is an earlier ledger's: the holder must hear of another one.
        version = claim.version if statement.seen <= claim.version else statement.seen + 1
        claim = replace(
            claim,
            request=request,
            renewed_s=now_s,
            held=held,
            used=_some(used),
            ended_on=frozenset(n for n in claim.ended_on if statement.used.get(n, 0) > held.get(n, 0)),
            facts=statement.facts,
            version=version,
        )
        return self._with(_settled(claim, now_s))

    def close(self, claim_id: str) -> Book:
        """After a holder has given everything back for good."""
        left = {other: claim for other, claim in self.claims.items() if other != claim_id}
        return replace(self, claims=left)

    def ended(self, claim_id: str, units: Units, now_s: float) -> Book:
        """After units of a claim have been seen to end: by force, or because they died with their node."""
        claim = self.claims.get(claim_id)
        if claim is None:
            return self
        less = {
            name: _some({node: had.get(node, 0) - units.get(node, 0) for node in had})
            for name, had in (("held", claim.held), ("used", claim.used))
        }
        keep = {node: min(count, less["held"].get(node, 0)) for node, count in claim.keep.items()}
        left = less["held"]
        ended_on = claim.ended_on | {n for n in units if claim.used.get(n, 0) > left.get(n, 0)}
        changed = replace(claim, **less, keep=_some(keep), ended_on=ended_on, version=claim.version + 1)
        return self._with(_settled(changed, now_s))

    def on(self, nodes: Iterable[str], now_s: float) -> Book:
        """After a look at which `nodes` live: what was held on others has ended."""
        there, book = set(nodes), self
        for claim in self.claims.values():
            if gone := {node: units for node, units in claim.held.items() if node not in there}:
                book = book.ended(claim.id, gone, now_s)
        return book

    def carry_out(self, decisions: Iterable[Decision], now_s: float) -> Book:
        """After a round of `decisions`. One about a claim that has gone meanwhile changes nothing."""
        decisions, book = list(decisions), self
        waits = {decision.claim: decision for decision in decisions if isinstance(decision, Wait)}
        for claim in self.claims.values():
            wait = waits.get(claim.id)
            since_s = None if wait is None else now_s if claim.waiting_s is None else claim.waiting_s
            book = book._with(replace(claim, wait=wait, waiting_s=since_s))
        asks = next((decision.asks for decision in decisions if isinstance(decision, AskNodes)), ())
        book = replace(book, asks=asks)
        for decision in decisions:
            if not isinstance(decision, AskNodes | Wait) and decision.claim in book.claims:
                book = book._after(decision, book.claims[decision.claim], now_s)
        return book

    def _after(
        self, decision: Grant | Notice | Withdraw | Evict | Expire, claim: Claim, now_s: float
    ) -> Book:
        newer = replace(claim, version=claim.version + 1)
        match decision:
            case Grant(units=units):
                held = _sum(claim.held, units)
                keep = _sum(claim.keep, units) if claim.notice else claim.keep
                since_s = None if claim.wait is None else now_s
                return self._with(replace(newer, held=held, keep=keep, granted_s=now_s, waiting_s=since_s))
            case Notice(give=give):
                keep = _some({node: units - give.get(node, 0) for node, units in claim.held.items()})
                return self._with(replace(newer, notice=decision, keep=keep, noticed_s=now_s, evicted_s=None))
            case Withdraw():
                return self._with(replace(newer, notice=None, keep={}, noticed_s=now_s, withdrawn_s=now_s))
            case Evict():
                return self._with(replace(claim, evicted_s=now_s))
            case Expire():
                return self.close(claim.id)

    def _with(self, claim: Claim) -> Book:
        return replace(self, claims={**self.claims, claim.id: claim})


def _settled(claim: Claim, now_s: float) -> Claim:
    """Without its notice, once that has been obeyed."""
    if claim.notice is None or claim.giving:
        return claim
    return replace(claim, notice=None, keep={}, noticed_s=now_s, evicted_s=None)


def _some(units: Units) -> dict[str, int]:
    return {node: count for node, count in units.items() if count > 0}


def _sum(left: Units, right: Units) -> dict[str, int]:
    return {node: left.get(node, 0) + right.get(node, 0) for node in {**left, **right}}


def _most(left: Units, right: Units) -> dict[str, int]:
    return _some({node: max(left.get(node, 0), right.get(node, 0)) for node in {**left, **right}})
