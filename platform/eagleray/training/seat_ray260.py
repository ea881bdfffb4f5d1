"""A seat: what one worker of a run holds on one node, and the worker's actor on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from eagleray.training.worker_actor_ray260 import NUM_ORDER_THREADS, ORDERS, WorkerActor

START_LIMIT_S = 300.0
"""For a worker's process to be up, on a node that may have to get its environment first."""


@dataclass(eq=False)
class Seat:
    """What one worker holds on one node."""

    group: PlacementGroup
    index: int
    """Of its bundle in the group."""
    is_own: bool
    """The group has no other seat: it can be given back alone."""
    node: str | None = None
    """Id of the one that it is on; None: wherever Ray finds room."""
    actor: Any = None
    rank: int | None = None
    """Of its worker among those that train; None: it is on its way in, or a spare."""
    is_leaving: bool = False
    """It is to be given back."""
    is_used: bool = False
    """A node has had it."""

    @property
    def is_placed(self) -> bool:
        """Whether a node has it now; Ray moves it by itself when its node dies."""
        is_placed = placement_group_table(self.group).get("state") == "CREATED"
        self.is_used |= is_placed
        return is_placed


def create_actor(seat: Seat, bundle: Mapping[str, float]) -> Any:
    """A worker actor on a seat."""
    resources = dict(bundle)
    options: dict[str, Any] = {
        "num_cpus": resources.pop("CPU", 0),
        "num_gpus": resources.pop("GPU", 0),
        "resources": resources,
        "concurrency_groups": {ORDERS: NUM_ORDER_THREADS},
    }
    actor_class: Any = ray.remote(**options)(WorkerActor)
    strategy = PlacementGroupSchedulingStrategy(seat.group, placement_group_bundle_index=seat.index)
    return actor_class.options(scheduling_strategy=strategy).remote()


def standing(seat: Seat) -> tuple[bool, bool, int]:
    """Who stays rather: those that train, by rank; those with a worker."""
    return seat.rank is None, seat.actor is None, seat.rank or 0


def spread(seats: Iterable[Seat]) -> list[Seat]:
    """One of each node first, then a second of each, …: so that the loss of a node leaves somebody."""
    seats, before = list(seats), Counter[str | None]()
    turns = {}
    for seat in seats:
        turns[seat] = before[seat.node] if seat.node else 0
        before[seat.node] += 1
    return sorted(seats, key=turns.__getitem__)
