"""Actors that a cluster has once, on its head, and that outlive who started them, such as its ledger."""

from __future__ import annotations

from typing import Any

from eagleray.cluster.names import NAMESPACE, ON_HEAD


def start(actor_class: type, name: str, wanted: dict[str, Any], *, max_calls: int) -> Any:
    """The cluster's actor of that name, made where there is none; it need not be up yet. Ray is connected.

    Args:
        actor_class: What it is an instance of; Ray starts it anew whenever it ends.
        name: In our namespace.
        wanted: What it is made with, plain values.
        max_calls: At one time on it.
    """
    import ray

    return (
        ray.remote(actor_class)
        .options(
            name=name,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            max_concurrency=max_calls,
            num_cpus=0,
            resources=dict(ON_HEAD),
        )
        .remote(wanted)
    )
