"""Who holds which CPUs and GPUs of the cluster, and what waits for what: the ledger's answer as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ClaimedNode:
    """One node that lives."""

    id: str
    name: str
    """By which people know it."""
    type: str
    total: Mapping[str, float]
    other: Mapping[str, float]
    """In use by what has no claim."""
    is_on_demand: bool
    """It was started for work, and goes away when it is idle."""
    is_draining: bool


@dataclass(frozen=True)
class ClaimNotice:
    """What a claim is to give back."""

    give: Mapping[str, int]
    """Units by node id."""
    left_s: float
    """Until it is ended by force."""
    is_suspension: bool
    """All of it: the holder cannot go on with less, and is queued again."""
    reason: str
    wanted_by: tuple[str, ...]
    """Ids of claims."""
    is_evicted: bool = False
    """Whether it has begun to be ended by force."""


@dataclass(frozen=True)
class ClaimWait:
    """What a claim has not got."""

    units: int
    cause: str
    """yield, held, fragments, unclaimed, size, labels, budget or cool_down (docs/capacity.md)."""
    reason: str
    waits_for: tuple[str, ...]
    """Ids of claims."""
    waited_s: float
    asked: int = 0
    """Of the units: those for which nodes have been asked for."""


@dataclass(frozen=True)
class Claim:
    """One claim: so many units of one bundle, each on one node."""

    id: str
    holder: str
    """Who it is, in words: "run gpt-7f3a"."""
    bundle: Mapping[str, float]
    """Of one unit: a replica, a worker, a trial, a job's part."""
    minimum: int
    wanted: int
    held: Mapping[str, int]
    """Units by node id."""
    used: Mapping[str, int]
    """Of those: the ones that run."""
    classes: Mapping[str, int]
    """Units held, by class: "serving floor", "training share" and so on."""
    notice: ClaimNotice | None
    wait: ClaimWait | None


@dataclass(frozen=True)
class Claims:
    """The ledger at one moment."""

    trouble: str
    """Why there is nothing to say, or why what is said does not change; empty where all is well."""
    time_s: float = 0.0
    """Seconds since the epoch."""
    nodes: tuple[ClaimedNode, ...] = ()
    claims: tuple[Claim, ...] = ()
    """The highest class first."""


def claims(values: Mapping[str, Any]) -> Claims:
    """From the server's JSON."""
    trouble = str(values.get("trouble") or "")
    if "claims" not in values:
        return Claims(trouble)
    time_s = float(values["time_s"])
    asked = {str(ask["claim"]): int(ask["num_new"]) for ask in values.get("asks", ())}
    return Claims(
        trouble=trouble,
        time_s=time_s,
        nodes=tuple(map(_node, values["nodes"])),
        claims=tuple(_claim(entry, time_s, asked.get(str(entry["id"]), 0)) for entry in values["claims"]),
    )


def _node(entry: Mapping[str, Any]) -> ClaimedNode:
    return ClaimedNode(
        id=str(entry["id"]),
        name=str(entry["name"]),
        type=str(entry["type"]),
        total=dict(entry["total"]),
        other=dict(entry["other"]),
        is_on_demand=bool(entry["is_on_demand"]),
        is_draining=bool(entry["is_draining"]),
    )


def _claim(entry: Mapping[str, Any], time_s: float, asked: int) -> Claim:
    notice, wait = entry["notice"], entry["wait"]
    return Claim(
        id=str(entry["id"]),
        holder=str(entry["holder"]),
        bundle=dict(entry["bundle"]),
        minimum=int(entry["minimum"]),
        wanted=int(entry["wanted"]),
        held=dict(entry["held"]),
        used=dict(entry["used"]),
        classes=dict(entry["classes"]),
        notice=None
        if notice is None
        else ClaimNotice(
            give=dict(notice["give"]),
            left_s=float(notice["left_s"]),
            is_suspension=bool(notice["is_suspension"]),
            reason=str(notice["reason"]),
            wanted_by=tuple(notice["wanted_by"]),
            is_evicted=bool(notice.get("is_evicted")),
        ),
        wait=None
        if wait is None
        else ClaimWait(
            units=int(wait["units"]),
            cause=str(wait["cause"]),
            reason=str(wait["reason"]),
            waits_for=tuple(wait["waits_for"]),
            waited_s=max(0.0, time_s - float(wait["since_s"] or time_s)),
            asked=asked,
        ),
    )
