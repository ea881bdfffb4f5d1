"""What the ledger says of itself, as plain values: who holds what, and what waits for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from eagleray.capacity.book import Book
from eagleray.capacity.claims import Claim, Node


def report_of(book: Book, nodes: Mapping[str, Node], now_s: float) -> dict[str, Any]:
    """{"nodes", "claims", "asks"}: lists of plain values, JSON as it is. Times are seconds since the epoch.

    A node: id, name (for people), type, labels, total, other (in use without a claim), is_on_demand,
    is_draining. A claim: id, holder, bundle (of a unit), minimum, wanted, budget, label_selector, held and
    used (units by node id), classes (units that are held, by class), first_class, opened_s, renewed_s, notice
    and wait, each None where there is none. An ask: claim, bundle, label_selector, count, num_new.
    """
    return {
        "nodes": [_node(node) for node in sorted(nodes.values(), key=lambda node: (node.name, node.id))],
        "claims": [_claim(claim, now_s) for claim in sorted(book.claims.values(), key=_place)],
        "asks": [
            {
                "claim": ask.claim,
                "bundle": dict(ask.bundle),
                "label_selector": dict(ask.label_selector),
                "count": ask.count,
                "num_new": ask.num_new,
            }
            for ask in book.asks
        ],
    }


def _place(claim: Claim) -> tuple[int, float, str]:
    """The highest class first, then who came first."""
    return (-claim.class_of(0), claim.opened_s, claim.id)


def _node(node: Node) -> dict[str, Any]:
    return {
        "id": node.id,
        "name": node.name or node.id,
        "type": node.node_type,
        "labels": dict(node.labels),
        "total": dict(node.total),
        "other": dict(node.other),
        "is_on_demand": node.is_on_demand,
        "is_draining": node.is_draining,
    }


def _claim(claim: Claim, now_s: float) -> dict[str, Any]:
    request = claim.request
    classes = Counter(claim.class_of(unit).words for unit in range(claim.size))
    return {
        "id": claim.id,
        "holder": request.holder,
        "bundle": dict(request.bundle),
        "minimum": request.minimum,
        "wanted": request.wanted,
        "budget": request.budget,
        "label_selector": dict(request.label_selector),
        "held": dict(claim.held),
        "used": dict(claim.used),
        "classes": dict(classes),
        "first_class": claim.class_of(0).words,
        "opened_s": claim.opened_s,
        "renewed_s": claim.renewed_s,
        "notice": _notice(claim, now_s),
        "wait": _wait(claim),
    }


def _notice(claim: Claim, now_s: float) -> dict[str, Any] | None:
    notice = claim.notice
    if notice is None:
        return None
    return {
        "give": claim.giving,
        "keep": dict(claim.keep),
        "deadline_s": notice.deadline_s,
        "left_s": max(0.0, notice.deadline_s - now_s),
        "is_suspension": claim.is_suspending,
        "is_evicted": claim.evicted_s is not None,
        "reason": notice.reason,
        "wanted_by": list(notice.wanted_by),
    }


def _wait(claim: Claim) -> dict[str, Any] | None:
    wait = claim.wait
    if wait is None:
        return None
    return {
        "units": wait.units,
        "cause": wait.cause,
        "reason": wait.reason,
        "waits_for": list(wait.waits_for),
        "since_s": claim.waiting_s,
    }
