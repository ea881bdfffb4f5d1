"""`RaySide`: how the ledger sees and changes a Ray cluster (Ray 2.60).

**Nodes are asked for by placement groups**, one for each unit, which may lie only on nodes that were not
there when it was made. The node autoscaler starts nodes for them as for any work that waits. When such a node
has come, the ledger grants its room and removes the group. Ray's other way, `request_resources`, has one
request for the whole cluster: each caller undoes what another asked for. It counts what nodes have and not
what is free on them; and the actor that merges callers, Ray Data's coordinator, costs 130 MB.

**Where that coordinator runs**, since a stock run of Ray Train or Ray Data has started it, it is told what is
held under claims: stock runs count what nodes have, and not what is in use on them.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from eagleray.capacity.decisions import Ask, Units
from eagleray.capacity.placement import Capacity
from eagleray.capacity.resources import Resources, num_fitting
from eagleray.cluster import capacity_ray260, observation_ray260
from eagleray.cluster.names import ASK_GROUP, CLAIM_GROUP, NODE_ID_LABEL
from eagleray.cluster.observation_ray260 import groups
from eagleray.cluster.side import Held
from eagleray.cluster.sight import Seen

REQUESTER = "eagleray-ledger"
COORDINATOR = "AutoscalingCoordinator"
"""Name of the actor, and of its namespace."""
_PRIORITY = 100
"""Above that of Ray Train's own requests (10)."""
_EXPIRES_S, _RENEW_S = 60.0, 20.0
_GONE_S, _LOOK_EVERY_S = 5.0, 0.02
_CALL_S = 5.0
_PIN = 0.001


@dataclass(frozen=True, eq=False)
class _Asked:
    """A placement group that stands for one unit of an ask."""

    id: str
    bundle: Resources
    selector: Mapping[str, str]
    claim: str
    present: frozenset[str]
    """Nodes on which it may not lie."""

    @property
    def what(self) -> tuple[Any, ...]:
        return (self.claim, *sorted(self.bundle.items()), *sorted(self.selector.items()))

    def may_end(self, state: str, free: Mapping[str, Resources]) -> bool:
        """Whether Ray cannot be placing it now: what it takes then would stay taken for ever (2.60)."""
        may_lie = [room for node, room in free.items() if node not in self.present]
        return state == "CREATED" or (
            state == "PENDING" and not any(num_fitting(self.bundle, room) for room in may_lie)
        )


class RaySide:
    """A `Side` for one ledger. Ray is connected; `ask`, `settle` and `end` are called by one thread."""

    def __init__(self) -> None:
        self._asked: list[_Asked] = []
        self._surplus: list[_Asked] = []
        """To be removed as soon as that may be."""
        self._told: list[dict[str, float]] = []
        self._told_s = float("-inf")

    def observe(self, capacity: Capacity, *, with_asks: bool) -> Seen:
        """As Side."""
        return observation_ray260.observe(capacity, with_asks=with_asks)

    def capacity(self) -> Capacity:
        """As Side."""
        return capacity_ray260.observe()

    def ask(self, asks: Sequence[Ask], free: Mapping[str, Resources]) -> bool:
        """As Side."""
        found = groups(ASK_GROUP)
        known = {one.id for one in (*self._asked, *self._surplus)}
        self._surplus += [  # of a ledger before this one, or made in a call that failed before it said so
            _Asked(group_id, group["bundles"][0], {}, "", frozenset())
            for group_id, group in found
            if group_id not in known
        ]
        wanted: dict[tuple[Any, ...], list[_Asked]] = {}
        for one in asks:
            bundle = {name: amount for name, amount in one.bundle.items() if amount > 0}
            model = _Asked("", bundle, dict(one.label_selector), one.claim, frozenset(free))
            wanted[model.what] = [model] * one.num_new
        for have in self._asked:
            if wanted.get(have.what):
                wanted[have.what].pop()
            else:
                self._surplus.append(have)
        self._asked = [have for have in self._asked if have not in self._surplus]
        self._asked += [_made(model) for models in wanted.values() for model in models]
        self._end_surplus({group_id: group["state"] for group_id, group in found}, free)
        return bool(self._asked or self._surplus)

    def settle(self, free: Mapping[str, Resources]) -> None:
        """As Side.

        Groups that wait are made anew first, so that none of them slips into the room that another leaves.
        """
        states = {group_id: group["state"] for group_id, group in groups(ASK_GROUP)}
        kept, new = [], []
        for one in self._asked:
            state = states.get(one.id, "")
            if state not in ("", "CREATED") and (one.present >= free.keys() or not one.may_end(state, free)):
                kept.append(one)
                continue
            if state not in ("", "CREATED"):
                new.append(_made(replace(one, present=frozenset(free))))
            self._surplus.append(one)
        self._asked = kept + new
        self._end_surplus(states, free)

    def _end_surplus(self, states: Mapping[str, str], free: Mapping[str, Resources]) -> None:
        left = []
        for one in self._surplus:
            state = states.get(one.id)
            if state is not None and not one.may_end(state, free):
                left.append(one)
            elif state is not None:
                _remove(one.id)
        self._surplus = left

    def evict(self, claim: str, units: Units, keep: Units) -> dict[str, int]:
        """As Side: removes the claim's placement groups on these nodes, the newest first.

        With a group end the workers in it. What lies in no group that is named after the claim goes on. So do
        as many as are kept: the holder may have removed the others, and not have said so yet.
        """
        found = [
            (group["name"], group_id, Counter(group["bundles_to_node_id"].values()))
            for group_id, group in groups(f"{CLAIM_GROUP}{claim}:")
            if group["state"] == "CREATED" and ":" not in group["name"].removeprefix(f"{CLAIM_GROUP}{claim}:")
        ]
        in_all = sum((there for *_, there in found), Counter[str]())
        left, chosen = Counter(units) & (in_all - Counter(keep)), dict[str, Counter[str]]()
        for _, group_id, there in sorted(found, key=lambda group: (len(group[0]), group[0]), reverse=True):
            if there and there <= left:
                left -= there
                chosen[group_id] = there
                _remove(group_id)
        deadline_s, left_over = time.monotonic() + _GONE_S, set(chosen)
        while left_over and time.monotonic() < deadline_s:
            left_over &= {group_id for group_id, _ in groups(f"{CLAIM_GROUP}{claim}:")}
            time.sleep(_LOOK_EVERY_S if left_over else 0)
        ended = [units for group_id, units in chosen.items() if group_id not in left_over]
        return dict(sum(ended, Counter[str]()))

    def tell(self, held: Sequence[Held], totals: Mapping[str, Resources]) -> None:
        """As Side, where a stock run has started Ray's coordinator."""
        import ray

        try:
            coordinator: Any = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
        except ValueError:
            self._told_s = float("-inf")
            return
        bundles = [_pinned(one, totals) for one in held for _ in range(one.units)]
        if bundles == self._told and time.monotonic() - self._told_s < _RENEW_S:
            return
        if bundles:
            told = coordinator.request_resources.remote(
                requester_id=REQUESTER,
                resources=bundles,
                expire_after_s=_EXPIRES_S,
                # An enumeration of ours would have to be importable where the actor runs; it reads the value.
                priority=SimpleNamespace(value=_PRIORITY),
            )
        else:
            told = coordinator.cancel_request.remote(REQUESTER)
        ray.get(told, timeout=_CALL_S)
        self._told, self._told_s = bundles, time.monotonic()

    def end(self) -> None:
        """As Side: ask for nothing, and hold nothing against stock runs."""
        self.ask((), {})
        self.tell((), {})


def _pinned(held: Held, totals: Mapping[str, Resources]) -> dict[str, float]:
    """The bundle with a resource that only its node has: the coordinator takes no notice of labels."""
    bundle = {name: amount for name, amount in held.bundle.items() if amount > 0}
    pin = pin_of(totals[held.node], [total for node, total in totals.items() if node != held.node])
    return {**bundle, pin: _PIN} if pin else bundle


def pin_of(total: Mapping[str, float], others: Iterable[Mapping[str, float]]) -> str:
    """A resource of a node that none of `others` has; empty where there is none.

    Ray gives each node one that is named after its address; on one host several may share it.
    """
    ours = [name for name in total if name.startswith("eagleray_node_")]
    of_address = [name for name in total if name.startswith("node:") and name != "node:__internal_head__"]
    taken = {name for other in others for name in other}
    return next((name for name in (*ours, *of_address) if name not in taken), "")


def _made(model: _Asked) -> _Asked:
    """A group like `model`, which has none yet."""
    from ray.util.placement_group import placement_group

    selector = dict(model.selector)
    if model.present:
        selector[NODE_ID_LABEL] = f"!in({','.join(sorted(model.present))})"
    group = placement_group(
        [dict(model.bundle)],
        name=f"{ASK_GROUP}{model.claim}:{secrets.token_hex(4)}",
        bundle_label_selector=[selector] if selector else None,  # type: ignore[arg-type]
    )
    return replace(model, id=group.id.hex())


def _remove(group_id: str) -> None:
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))
