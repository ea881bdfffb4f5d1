"""What the cluster that this driver is connected to can ever have, as Ray 2.60 or we wrote it down."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from eagleray.capacity import placement
from eagleray.capacity.placement import Capacity, NodeCapacity

KV_NAMESPACE = b"eagleray"
KV_NODE_TYPES = b"node_types"
NODE_TYPE_LABEL = "ray.io/node-group"
_BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""`ray up` leaves the whole cluster file here on the head."""


def node_types() -> list[NodeCapacity]:
    """The node types that the autoscaler may start, and machines that are there without one."""
    return list(observe().types)


def require(
    bundles: Sequence[Mapping[str, float]],
    label_selector: Mapping[str, str] | None = None,
    *,
    noun: str = "worker",
) -> None:
    """Check that `bundles`, each of a `noun`, could ever be placed on nodes that match `label_selector`.

    Raises:
        CapacityError: never, whatever is started; the message says what the node types allow.
    """
    placement.require(observe(), bundles, label_selector, noun=noun)


def observe() -> Capacity:
    """The first of our own record, `ray up`'s file and the GCS's record; else the machines that are there."""
    found = _from_our_record() or _from_cluster_file() or _from_gcs_record()
    present = [node for node in ray.nodes() if node["Alive"]]
    if found is None:
        # An autoscaler that we cannot read named these nodes: it may start others.
        is_managed = any(_type_of(node) for node in present) or "RAY_USAGE_STATS_KUBERAY_IN_USE" in os.environ
        return Capacity([_machine(node) for node in present], is_complete=not is_managed)
    known = {node_type.name for node_type in found.types}
    unmanaged = [_machine(node) for node in present if _type_of(node) not in known]
    return Capacity([*found.types, *unmanaged], found.max_nodes)


def publish(client: Any, max_nodes: int, types: Iterable[NodeCapacity]) -> None:
    """Put the node types where `observe` finds them from every node: Ray's own record has no labels.

    Args:
        client: a GcsClient.
        max_nodes: worker nodes over all types.
        types: what the autoscaler may start.
    """
    record = {"max_nodes": max_nodes, "types": [vars(node_type) for node_type in types]}
    client.internal_kv_put(KV_NODE_TYPES, json.dumps(record).encode(), True, KV_NAMESPACE)


def _from_our_record() -> Capacity | None:
    from ray.experimental.internal_kv import _internal_kv_get

    record = _internal_kv_get(KV_NODE_TYPES, namespace=KV_NAMESPACE)
    if not record:
        return None
    found = json.loads(record)
    return Capacity([NodeCapacity(**entry) for entry in found["types"]], found["max_nodes"])


def _from_cluster_file() -> Capacity | None:
    path = _BOOTSTRAP_CONFIG.expanduser()
    if not path.exists():
        return None
    import yaml

    config = yaml.safe_load(path.read_text())
    types = [
        NodeCapacity(name, entry.get("resources", {}), entry.get("labels", {}), entry.get("max_workers", 0))
        for name, entry in config.get("available_node_types", {}).items()
        if name != config.get("head_node_type")
    ]
    return Capacity(types, config.get("max_workers"))


def _from_gcs_record() -> Capacity | None:
    """What an autoscaler reported; -1 stands for no limit."""
    from ray._private.state import state as ray_state

    config = ray_state.get_cluster_config()
    if config is None or not config.node_group_configs:
        return None
    types = [
        NodeCapacity(
            group.name, dict(group.resources), None, group.max_count if group.max_count >= 0 else 1 << 20
        )
        for group in config.node_group_configs
    ]
    return Capacity(types)


def _machine(node: Mapping[str, Any]) -> NodeCapacity:
    """A machine that is there."""
    return NodeCapacity(node["NodeName"], node["Resources"], node.get("Labels") or {}, 1, is_fixed=True)


def _type_of(node: Mapping[str, Any]) -> str:
    return (node.get("Labels") or {}).get(NODE_TYPE_LABEL, "")
