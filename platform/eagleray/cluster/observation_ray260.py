"""What the ledger sees of the cluster: nodes that live, and what is in use on each (Ray 2.60)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from eagleray.capacity.claims import Node
from eagleray.capacity.placement import Capacity
from eagleray.capacity.resources import Resources, plus
from eagleray.cluster.names import ASK_GROUP
from eagleray.cluster.sight import Seen

_TIMEOUT_S = 2.0


def observe(capacity: Capacity, *, with_asks: bool) -> Seen:
    """The cluster now. Ray is connected; blocks for some milliseconds, or for 2 s where the GCS is away.

    Args:
        capacity: Whose node types are started on demand.
        with_asks: Whether placement groups of the ledger's asks may be there.

    Raises:
        Exception: whatever Ray raises while the GCS is away.
    """
    from ray.core.generated import autoscaler_pb2

    messages: Any = autoscaler_pb2  # made when it is imported
    dead, draining = messages.NodeStatus.DEAD, messages.NodeStatus.DRAINING
    reply = messages.GetClusterResourceStateReply()
    reply.ParseFromString(_gcs().get_cluster_resource_state(timeout_s=_TIMEOUT_S))
    states = [found for found in reply.cluster_resource_state.node_states if found.status != dead]
    leaves_s = _drains() if any(found.status == draining for found in states) else {}
    on_demand = {kind.name for kind in capacity.types if not kind.is_fixed}
    nodes, in_use = [], {}
    for found in states:
        node_id, total = found.node_id.hex(), dict(found.total_resources)
        node = Node(
            node_id,
            total,
            labels=dict(found.labels),
            node_type=found.ray_node_type_name,
            is_on_demand=found.ray_node_type_name in on_demand,
            is_draining=found.status == draining,
            leaves_s=leaves_s.get(node_id),
            name=_name_of(total, found.node_ip_address),
        )
        nodes.append(node)
        used = plus(total, dict(found.available_resources), -1)
        in_use[node_id] = {key: amount for key, amount in used.items() if amount > 0}
    return Seen(tuple(nodes), in_use, _asked_by_node() if with_asks else {})


def groups(prefix: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Placement groups whose names begin so, placed or not, by id; as `placement_group_table` has them."""
    from ray.util.placement_group import placement_group_table

    return [
        (group_id, found)
        for group_id, found in placement_group_table().items()
        if found["name"].startswith(prefix) and found["state"] != "REMOVED"
    ]


def session() -> str:
    """A name that this cluster has for itself, from its start to its end."""
    import ray

    return ray.get_runtime_context().get_session_name()


def _asked_by_node() -> dict[str, Resources]:
    """What placement groups of the ledger's asks hold, by node."""
    held: dict[str, Resources] = {}
    for _, found in groups(ASK_GROUP):
        for index, node_id in found["bundles_to_node_id"].items():
            if node_id and found["state"] == "CREATED":
                held[node_id] = plus(held.get(node_id, {}), found["bundles"][index])
    return held


def _name_of(total: Collection[str], address: str) -> str:
    """The name by which people know a node: ours where it has one, else its host's address."""
    ours = [name for name in total if name.startswith("eagleray_node_")]
    return ours[0].removeprefix("eagleray_node_") if ours else address


def _gcs() -> Any:
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    return internal_kv_get_gcs_client()


def _drains() -> dict[str, float]:
    """When draining nodes go, in seconds since the epoch, where that is known."""
    from ray._private.state import state

    return {node: at_ms / 1000 for node, at_ms in state.get_draining_nodes().items() if at_ms > 0}
