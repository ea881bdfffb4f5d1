"""Two listeners that Ray 2.60 and torch open on every interface, kept to the node's own Ray address.

On a local cluster that address is loopback. Neither has a setting: Serve's replica binds its gRPC server to
`[::]:0`, and rank 0 of a torch process group binds its store to all interfaces.
"""

from __future__ import annotations

from dataclasses import dataclass
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


def keep_store_to_node_address() -> None:
    """Patch torch in this process: rank 0's store then listens on MASTER_ADDR alone."""
    import importlib

    # `import torch.distributed.rendezvous as x` yields the function of that name.
    rendezvous = importlib.import_module("torch.distributed.rendezvous")
    rendezvous._create_c10d_store = create_store  # type: ignore[attr-defined]


def create_store(
    hostname: str, port: int, rank: int, world_size: int, timeout: Any, use_libuv: bool = True
) -> Any:
    """What torch's own function does, but the listening socket is ours and bound to `hostname`."""
    import socket

    from torch.distributed import TCPStore

    if rank != 0:
        return TCPStore(hostname, port, world_size, False, timeout, use_libuv=use_libuv)
    listener = socket.create_server((hostname, port), backlog=128)
    return TCPStore(
        host_name=hostname,
        port=listener.getsockname()[1],
        world_size=world_size,
        is_master=True,
        timeout=timeout,
        multi_tenant=True,
        master_listen_fd=listener.detach(),
        use_libuv=use_libuv,
    )


def torch_config(backend: str = "gloo", timeout_s: int = 600) -> Any:
    """A `TorchConfig` for a TorchTrainer of one's own; our runs use `training/backend_ray260.py`."""
    from ray.train.torch.config import TorchConfig, _TorchBackend

    class LoopbackBackend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
            worker_group.execute(keep_store_to_node_address)
            super().on_start(worker_group, backend_config)

    @dataclass
    class LoopbackTorchConfig(TorchConfig):
        @property
        def backend_cls(self) -> type[_TorchBackend]:
            return LoopbackBackend

    return LoopbackTorchConfig(backend=backend, timeout_s=timeout_s)
