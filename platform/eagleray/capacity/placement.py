"""Whether bundles of resources could ever be placed on a cluster's node types: pure arithmetic, no cluster.

It never refuses what might fit: bundles of several shapes are checked shape by shape and in sum, not packed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from eagleray.errors import CapacityError

_UNBOUNDED = 1 << 60
_NOT_DECLARED = ("memory", "object_store_memory", "accelerator_type:", "node:", "eagleray_node_")
"""Resources that a node finds out about itself when it starts; a node type does not list them."""
_LISTED = re.compile(r"in\((?P<values>.*)\)")


@dataclass(frozen=True)
class NodeCapacity:
    """A node type (or a machine that is there) as the check sees it."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] | None
    """None where they are not known: then every selector may match."""
    max_nodes: int
    is_fixed: bool = False
    """A machine that is there: it does not count towards the cap of what may be started."""

    def num_fitting(self, bundle: Mapping[str, float]) -> int:
        """How many of `bundle` fit on one empty node."""
        fits = [self.amount(key) / amount for key, amount in bundle.items() if amount > 0]
        return math.floor(min(fits, default=_UNBOUNDED) + 1e-9)

    def amount(self, key: str) -> float:
        """How much of a resource one node has; unbounded where a node type would not list it."""
        unknown = _UNBOUNDED if key.startswith(_NOT_DECLARED) else 0
        return self.resources.get(key, unknown)

    def matches(self, selector: Mapping[str, str]) -> bool:
        """Whether a node of this type may carry labels that `selector` asks for."""
        return self.labels is None or all(
            label_matches(self.labels.get(key), wanted)
            for key, wanted in selector.items()
            if key in self.labels or not key.startswith("ray.io/")  # those Ray adds as the node starts
        )


@dataclass(frozen=True)
class Capacity:
    """All that a cluster can ever have."""

    types: Sequence[NodeCapacity]
    max_nodes: int | None = None
    """Worker nodes over all types; None for no such cap."""
    is_complete: bool = True
    """False where node types exist that cannot be seen from here: then nothing is refused."""

    def num_placeable(self, bundle: Mapping[str, float], selector: Mapping[str, str]) -> int:
        """How many of `bundle` fit on the cluster at its largest, with nothing else on it."""
        fits = [(node, float(node.num_fitting(bundle))) for node in self._matching(selector)]
        return int(self._best_sum(fits))

    def total(self, key: str, selector: Mapping[str, str]) -> float:
        """How much of one resource the cluster has at its largest."""
        return self._best_sum([(node, node.amount(key)) for node in self._matching(selector)])

    @property
    def is_fixed(self) -> bool:
        """Whether nothing can be started: there are machines only."""
        return all(node.is_fixed for node in self.types)

    def _matching(self, selector: Mapping[str, str]) -> list[NodeCapacity]:
        return [node for node in self.types if node.matches(selector)]

    def _best_sum(self, offers: Sequence[tuple[NodeCapacity, float]]) -> float:
        """The largest sum of what nodes bring, each type with what one node of it brings, within the caps."""
        left, found = _UNBOUNDED if self.max_nodes is None else self.max_nodes, 0.0
        for node, per_node in sorted(offers, key=lambda offer: offer[1], reverse=True):
            num_nodes = node.max_nodes if node.is_fixed else min(node.max_nodes, left)
            found += per_node * num_nodes
            left -= 0 if node.is_fixed else num_nodes
        return min(found, _UNBOUNDED)


def require(
    capacity: Capacity,
    bundles: Sequence[Mapping[str, float]],
    selector: Mapping[str, str] | None = None,
    *,
    noun: str = "worker",
) -> None:
    """Check that `bundles`, each of a `noun` and on nodes that match `selector`, could all run at once.

    Raises:
        CapacityError: they never could, whatever the autoscaler starts.
    """
    selector = selector or {}
    if not capacity.is_complete:
        return
    for shape, num_wanted in Counter(tuple(sorted(bundle.items())) for bundle in bundles).items():
        most = capacity.num_placeable(dict(shape), selector)
        if most < num_wanted:
            raise CapacityError(_refusal(capacity, dict(shape), num_wanted, most, selector, noun=noun))
    for key in sorted({key for bundle in bundles for key in bundle}):
        wanted, most = sum(bundle.get(key, 0) for bundle in bundles), capacity.total(key, selector)
        if wanted > most + 1e-9:
            raise CapacityError(
                f"wants {_amount(key, wanted)} in all; {_limit(capacity)} {_amount(key, most)}: "
                f"{_offer(capacity, selector, [key])}; {_way_out(capacity, selector)}"
            )


def _refusal(
    capacity: Capacity,
    bundle: Mapping[str, float],
    num_wanted: int,
    most: int,
    selector: Mapping[str, str],
    *,
    noun: str,
) -> str:
    headline = {key: bundle[key] for key in ("GPU",) if bundle.get(key)} or bundle
    plural, each = ("", "") if num_wanted == 1 else ("s", " each")
    rest = {key: amount for key, amount in bundle.items() if key not in headline and amount > 0}
    also = f" (each also needs {amounts(rest)})" if rest else ""
    where = "".join(f" with label {key}={value}" for key, value in selector.items())
    return (
        f"wants {num_wanted} {noun}{plural} with {amounts(headline)}{each}{where}; "
        f"{_limit(capacity)} {most}{also}: "
        f"{_offer(capacity, selector, bundle)}; {_way_out(capacity, selector)}"
    )


def _limit(capacity: Capacity) -> str:
    return "the cluster's machines hold at most" if capacity.is_fixed else "node types allow at most"


def _way_out(capacity: Capacity, selector: Mapping[str, str]) -> str:
    if not capacity.is_fixed:
        return "ask for less, or raise max_workers and max_nodes of the cluster"
    labels = ",".join(f"{key}={value}" for key, value in selector.items())
    command = f"ray start --address=HEAD:PORT{f' --labels={labels}' if labels else ''}"
    return f"ask for less{' or for no label' if labels else ''}, or add machines: {command}"


def _offer(capacity: Capacity, selector: Mapping[str, str], asked: Collection[str]) -> str:
    """The node types and machines that match, in words; of machines what was `asked` for."""
    useful = [node for node in capacity.types if node.max_nodes and _is_useful(node)]
    matching = [node for node in useful if node.matches(selector)]
    types = [
        f"{node.name} ({amounts(node.resources)}) x {node.max_nodes}"
        for node in matching
        if not node.is_fixed
    ]
    machines = Counter(
        amounts({key: node.amount(key) for key in {"GPU", "CPU", *asked}})
        for node in matching
        if node.is_fixed
    )
    counted = [
        f"{number} {'machine' if number == 1 else 'machines'} with {amounts}"
        for amounts, number in machines.items()
    ]
    total = "" if capacity.max_nodes is None else f", at most {capacity.max_nodes} nodes in all"
    return (", ".join([*types, *counted]) or "none has that label") + total


def _is_useful(node: NodeCapacity) -> bool:
    return any(node.resources.get(key) for key in ("CPU", "GPU"))


def amounts(resources: Mapping[str, float]) -> str:
    """For instance "1 GPU, 4 CPU, 2 GiB memory"; resources that name one node are left out."""
    hidden = ("eagleray_node_", "node:")
    shown = {key: amount for key, amount in resources.items() if amount > 0 and not key.startswith(hidden)}
    ordered = sorted(shown.items(), key=lambda item: (item[0] != "GPU", item[0] != "CPU", item[0]))
    return ", ".join(_amount(key, amount) for key, amount in ordered) or "no resources"


def _amount(key: str, value: float) -> str:
    return f"{value / 2**30:.3g} GiB {key}" if key.endswith("memory") else f"{value:g} {key}"


def label_matches(found: str | None, wanted: str) -> bool:
    """Ray's selector language: value, !value, in(a, b), !in(a, b)."""
    negated, condition = wanted.startswith("!"), wanted.removeprefix("!")
    listed = _LISTED.fullmatch(condition)
    values: Iterable[str] = (
        [value.strip() for value in listed["values"].split(",")] if listed else [condition]
    )
    return (found in values) != negated
