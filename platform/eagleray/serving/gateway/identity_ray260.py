"""A gateway's name for the accountant: the id of its actor, so that Ray (2.60) can say whether it lives."""

from __future__ import annotations


def name() -> str:
    """Of this process's actor."""
    import ray

    found = ray.get_runtime_context().get_actor_id()
    assert found is not None, "a gateway is a replica, and each of those is an actor"
    return found


def is_gone(name: str) -> bool:
    """Whether that actor has ended for good: Serve starts another one in its place. It asks the GCS."""
    from ray._private.state import actors

    found = actors(name)
    return not found or found["State"] == "DEAD"
