"""The ledger's log: one `Event` for each decision and for what holders do; docs/capacity.md has its JSON.

From the events alone one can tell who held what at any time: each carries what the claim holds after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from eagleray.capacity.book import Book
from eagleray.capacity.claims import Claim
from eagleray.capacity.decisions import (
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
from eagleray.capacity.resources import Resources
from eagleray.errors import InputError

SCHEMA = 1
"""Raised when a field changes its meaning or goes away; new fields may come without."""

Kind = Literal[
    "open",
    "close",
    "return",
    "take",
    "grant",
    "notice",
    "suspend",
    "evict",
    "withdraw",
    "expire",
    "wait",
    "ask_nodes",
]
ByNode = Mapping[str, Resources]
_OfOneClaim = Grant | Notice | Suspend | Evict | Withdraw | Expire | Wait
_KINDS: Mapping[type, Kind] = {
    Grant: "grant",
    Notice: "notice",
    Suspend: "suspend",
    Evict: "evict",
    Withdraw: "withdraw",
    Expire: "expire",
    Wait: "wait",
}


@dataclass(frozen=True)
class Event:
    """What happened to one claim."""

    time_s: float
    """Since the epoch."""
    kind: Kind
    """A decision's; or open, close, return (units went or ended), take (units run ungranted)."""
    claim: str
    holder: str
    rank: str
    """The class concerned, for instance "serving_burst": of the first unit that comes, goes or is missing."""
    reason: str = ""
    units: int = 0
    """So many come, go, are to go, or are missing."""
    resources: ByNode = field(default_factory=dict)
    """Of these units by node id; of `ask_nodes`, which are on no node yet, under the name ""."""
    held: ByNode = field(default_factory=dict)
    """All that the claim holds after it."""
    size: int = 0
    """The same in units; of a notice: what it is to go on with."""
    deadline_s: float | None = None
    """Of a notice, since the epoch."""
    cause: Cause | None = None
    waits_for: tuple[str, ...] = ()
    """Of a wait, and of a notice: ids of the claims that it waits for, or is given for."""
    classes: Mapping[str, int] = field(default_factory=dict)
    """Units held after it by class; empty, too, in what a version before this field wrote."""

    def to_json(self) -> dict[str, Any]:
        """Plain values with the schema's number. `rank` is called "class" there."""
        values = asdict(self)
        values["class"] = values.pop("rank")
        return {"schema": SCHEMA, **values, "waits_for": list(self.waits_for)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Event:
        """What `to_json` gave, by this version or one that knows more fields.

        Raises:
            InputError: it is of another schema, or no event.
        """
        if not isinstance(values, Mapping) or values.get("schema") != SCHEMA:
            found = values.get("schema") if isinstance(values, Mapping) else values
            raise InputError(f"a capacity event of schema {found!r:.60}; this version reads schema {SCHEMA}")
        known = {key: values[key] for key in cls.__dataclass_fields__ if key in values}
        try:
            event = cls(**{**known, "rank": values["class"], "waits_for": tuple(values.get("waits_for", ()))})
        except (KeyError, TypeError) as error:
            raise InputError(f"a capacity event that lacks something: {error}") from None
        if event.kind not in get_args(Kind):
            raise InputError(f"a capacity event of kind {event.kind!r}; known: {', '.join(get_args(Kind))}")
        return event


def of_round(before: Book, decisions: Iterable[Decision], after: Book, now_s: float) -> list[Event]:
    """The events of a round, in the order of its decisions. A wait or an ask that goes on is told once.

    Args:
        before: The book that `decisions` were made from.
        decisions: All of the round.
        after: What `before.carry_out` made of them.
        now_s: Seconds since the epoch.
    """
    found: list[Event] = []
    for decision in decisions:
        if isinstance(decision, AskNodes):
            found += _of_asks(before, decision, after, now_s)
        elif decision.claim in before.claims:
            claim = before.claims[decision.claim]
            if claim.wait != decision:
                found.append(_of_decision(decision, claim, after.claims.get(claim.id), now_s))
    return found


def of_exchange(before: Book, after: Book, now_s: float, reason: str | None = None) -> Iterator[Event]:
    """The events of what holders did between two books, or of what has ended: open, close, return, take.

    Args:
        before: The book before.
        after: The book after.
        now_s: Seconds since the epoch.
        reason: Of what ended without its holder, units or a claim; None: holders gave it back.
    """
    for claim_id in {**before.claims, **after.claims}:
        was, now = before.claims.get(claim_id), after.claims.get(claim_id)
        if was is None and now is not None:
            yield _event("open", now, now, now_s, reason=f"wants {now.request.wanted}")
        elif was is not None and now is None:
            yield _event("close", was, None, now_s, change=was.held, reason=reason or "given back for good")
        elif was is not None and now is not None:
            if gone := _more(was.held, now.held):
                why = reason or ("as it was asked to" if was.notice else "by itself")
                yield _event("return", was, now, now_s, change=gone, reason=why)
            if came := _more(now.held, was.held):
                event = _event("take", was, now, now_s, change=came, reason="runs without a grant")
                yield replace(event, rank=_rank(was, was.size))


def _of_decision(decision: _OfOneClaim, claim: Claim, after: Claim | None, now_s: float) -> Event:
    kind: Kind = _KINDS[type(decision)]
    event = _event(kind, claim, after, now_s, reason=decision.reason)
    match decision:
        case Grant(units=units):
            event = replace(event, rank=_rank(claim, claim.size), **_change(claim, units))
        case Notice(give=give):
            told = {
                "size": decision.new_size,
                "deadline_s": decision.deadline_s,
                "waits_for": decision.wanted_by,
            }
            event = replace(event, **told, **_change(claim, give))
        case Evict(units=units):
            event = replace(event, **_change(claim, units))
        case Withdraw():
            event = replace(event, **_change(claim, claim.giving))
        case Expire():
            event = replace(event, **_change(claim, claim.held))
        case Wait():
            missing = {"units": decision.units, "cause": decision.cause, "waits_for": decision.waits_for}
            event = replace(event, rank=_rank(claim, claim.size), **missing)
    return event


def _of_asks(before: Book, decision: AskNodes, after: Book, now_s: float) -> Iterator[Event]:
    for ask in decision.asks:
        if ask not in before.asks and (claim := after.claims.get(ask.claim)):
            event = _event("ask_nodes", claim, claim, now_s, reason="no node has room for them")
            resources = {"": {key: amount * ask.count for key, amount in ask.bundle.items()}}
            yield replace(event, rank=_rank(claim, claim.size), units=ask.count, resources=resources)


def _event(
    kind: Kind,
    claim: Claim,
    after: Claim | None,
    now_s: float,
    *,
    reason: str,
    change: Units | None = None,
) -> Event:
    """About units that go; `after` is what becomes of `claim`."""
    held = {} if after is None else after.held
    return Event(
        now_s,
        kind,
        claim.id,
        claim.request.holder,
        _rank(claim, claim.size - 1),
        reason,
        held=_by_node(claim, held),
        size=sum(held.values()),
        classes={} if after is None else _classes(after),
        **_change(claim, change or {}),
    )


def _more(held: Units, than: Units) -> Units:
    """What is in `held` beyond `than`."""
    more = {node: units - than.get(node, 0) for node, units in held.items()}
    return {node: units for node, units in more.items() if units > 0}


def _change(claim: Claim, units: Units) -> dict[str, Any]:
    return {"units": sum(units.values()), "resources": _by_node(claim, units)}


def _rank(claim: Claim, unit: int) -> str:
    return claim.class_of(max(unit, 0)).name.lower()


def _classes(claim: Claim) -> dict[str, int]:
    return dict(Counter(claim.class_of(unit).name.lower() for unit in range(claim.size)))


def _by_node(claim: Claim, units: Units) -> dict[str, dict[str, float]]:
    bundle = claim.request.bundle
    return {
        node: {key: amount * count for key, amount in bundle.items()} for node, count in sorted(units.items())
    }
