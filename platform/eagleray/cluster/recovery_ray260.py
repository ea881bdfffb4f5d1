"""The recovery profile of the cluster that this process is connected to, and of one node (Ray 2.60)."""

from __future__ import annotations

import threading
from typing import Any

from eagleray.cluster import profiles
from eagleray.cluster.capacity_ray260 import KV_NAMESPACE

KV_PROFILE = b"profile"
_ASK_EVERY_S = 1.0


def in_use() -> profiles.Profile:
    """The profile that holds here: the one that `attach` was given, else that of the environment.

    Ray is connected. Drivers and workers see the same.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    record = _internal_kv_get(KV_PROFILE, namespace=KV_NAMESPACE)
    return profiles.named(record.decode()) if record else profiles.of_environment()


def publish(profile: profiles.Profile) -> None:
    """Let it hold in the whole cluster from now on. Ray is connected."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(KV_PROFILE, profile.name.encode(), overwrite=True, namespace=KV_NAMESPACE)


def withdraw() -> None:
    """Let the environment's hold again. Ray is connected."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(KV_PROFILE, namespace=KV_NAMESPACE)


def watch_for_death(node: Any) -> threading.Event:
    """An event that is set once the GCS counts the node as dead.

    A raylet that stood still while it was declared dead leaves its workers running until it moves again.

    Args:
        node: Ray's Node, of this process.
    """
    is_dead = threading.Event()

    def ask() -> None:
        while not is_dead.wait(_ASK_EVERY_S):
            if counts_as_dead(node):
                is_dead.set()

    threading.Thread(target=ask, daemon=True, name="liveness").start()
    return is_dead


def counts_as_dead(node: Any) -> bool:
    """Whether the GCS counts the node as dead; not where it does not answer within a second."""
    from ray import NodeID

    mine = NodeID.from_hex(node.node_id)  # of another type, it would end this process
    try:
        [is_alive] = node.get_gcs_client().check_alive([mine], timeout=_ASK_EVERY_S)
    except Exception:  # whatever Ray raises while the GCS is away: it says nothing of this node
        return False
    return not is_alive
