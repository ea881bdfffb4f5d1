"""A listener that Ray 2.60 opens on every interface, kept to the node's own Ray address.

On a local cluster that address is loopback. Serve has no setting for it: its replica binds its gRPC server to
`[::]:0`. The deployments of `serving` call this: the ingress, and each model.
"""

from __future__ import annotations

from typing import Any

_ALL_INTERFACES = "[::]:0"


def keep_replica_to_node_address() -> None:
    """Patch Serve in this process; to be called first in a deployment's `__init__`, before its server starts.

    In a module body it would not be applied: the bodies of modules with deployments are pickled by value.
    """
    import ray
    from ray.serve._private import replica

    original = replica.add_port_to_grpc_server
    if getattr(original, "is_kept", False):
        return
    address = f"{ray.util.get_node_ip_address()}:0"

    def add_port(server: Any, wanted: str) -> int:
        return original(server, address if wanted == _ALL_INTERFACES else wanted)

    add_port.is_kept = True  # type: ignore[attr-defined]
    replica.add_port_to_grpc_server = add_port
