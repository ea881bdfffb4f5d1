"""Which of the units that wait could run on nodes that are not there yet, by what the node types allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from eagleray.capacity.claims import Node
from eagleray.capacity.decisions import Ask
from eagleray.capacity.placement import Capacity, NodeCapacity
from eagleray.capacity.resources import num_fitting, plus


@dataclass(frozen=True)
class Lack:
    """An ask, as far as the claim goes."""

    ask: Ask
    num_here: int
    """Of its units: those that fit on nodes that are there."""
    at_least: int
    """Fewer are of no use."""


def possible(lacks: Sequence[Lack], capacity: Capacity | None, nodes: Iterable[Node]) -> tuple[Ask, ...]:
    """The asks that nodes still to be started could meet, each with as many units as could.

    Args:
        lacks: The most important first.
        capacity: What can be started; None: nothing.
        nodes: Those that are there: they count towards the limits of their types.
    """
    if capacity is None:
        return ()
    if not capacity.is_complete:  # types that cannot be seen from here may offer anything
        return tuple(
            replace(lack.ask, num_new=lack.ask.count - lack.num_here)
            for lack in lacks
            if lack.ask.count > lack.num_here
        )
    new, found = _NewNodes(capacity, nodes), []
    for lack in lacks:
        tried, count = new.copy(), lack.num_here
        while count < lack.ask.count and tried.place(lack.ask):
            count += 1
        if count >= max(1, lack.at_least) and count > lack.num_here:
            new = tried
            found.append(replace(lack.ask, count=count, num_new=count - lack.num_here))
    return tuple(found)


class _NewNodes:
    """Nodes that could be started, and what is left on those that would be. Mutable."""

    def __init__(self, capacity: Capacity, nodes: Iterable[Node]):
        by_size = sorted(capacity.types, key=lambda kind: (kind.amount("GPU"), kind.amount("CPU"), kind.name))
        self._types = [kind for kind in by_size if not kind.is_fixed]
        present = Counter(node.node_type for node in nodes)
        self._left = {kind.name: kind.max_nodes - present[kind.name] for kind in self._types}
        self._num_left = sum(self._left.values())
        if capacity.max_nodes is not None:
            self._num_left = capacity.max_nodes - sum(present[kind.name] for kind in self._types)
        self._started: list[tuple[NodeCapacity, dict[str, float]]] = []

    def copy(self) -> _NewNodes:
        copied = object.__new__(_NewNodes)
        copied._types, copied._num_left = self._types, self._num_left
        copied._left, copied._started = dict(self._left), list(self._started)
        return copied

    def place(self, ask: Ask) -> bool:
        """Whether one more unit finds room; if so, it has it."""
        for index, (kind, free) in enumerate(self._started):
            if kind.matches(ask.label_selector) and num_fitting(ask.bundle, _declared(kind, ask, free)):
                self._started[index] = (kind, plus(_declared(kind, ask, free), ask.bundle, -1))
                return True
        for kind in self._types:
            is_left = self._num_left > 0 and self._left[kind.name] > 0
            if is_left and kind.matches(ask.label_selector) and kind.num_fitting(ask.bundle):
                self._num_left -= 1
                self._left[kind.name] -= 1
                self._started.append((kind, plus(_declared(kind, ask, {}), ask.bundle, -1)))
                return True
        return False


def _declared(kind: NodeCapacity, ask: Ask, free: dict[str, float]) -> dict[str, float]:
    """What is free, with what the type has of all that is asked for."""
    return {key: kind.amount(key) for key in ask.bundle} | dict(kind.resources) | free
