"""Where ranks meet before they have a group: a store that all reach, over the right interface.

Each waits here for the others and, unlike in torch, never longer than it was told to.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

_FIRST_RETRY_S, _MAX_RETRY_S = 0.02, 0.5
_CONNECT_S = 10.0


def tcp_store(
    address: str, rank: int, world_size: int, deadline: float, *, is_broken: Callable[[], bool]
) -> Store:
    """The store at `address`; rank 0 serves it from a socket that listens there and nowhere else.

    torch's own listens on all interfaces; `master_listen_fd` is its way to take a ready socket.
    """
    import torch.distributed as dist

    host, _, port = address.rpartition(":")
    if rank != 0:
        _await_listener(host, int(port), deadline, is_broken)
        limit = min(_left(deadline), timedelta(seconds=_CONNECT_S))  # it has just listened
        return dist.TCPStore(host, int(port), world_size, False, limit, wait_for_workers=False)
    listener = socket.create_server((host, int(port)), backlog=max(128, 2 * world_size))
    return dist.TCPStore(
        host,
        listener.getsockname()[1],
        world_size,
        True,
        _left(deadline),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def _await_listener(host: str, port: int, deadline: float, is_broken: Callable[[], bool]) -> None:
    """Return once somebody accepts connections there.

    torch's store would try again when its time is up: 5.1 s in place of 2 (2.13).

    Raises: OSError: of the last try before the deadline, or `is_broken` meanwhile.
    """
    retry_s = _FIRST_RETRY_S
    while True:
        if is_broken():
            raise OSError("the group was broken before it was formed")
        try:
            with socket.create_connection((host, port), _left(deadline).total_seconds()) as connection:
                if connection.getsockname() != connection.getpeername():
                    return
                # Both ends are this one: on a loopback, the kernel had picked `port` for this end too.
        except OSError:
            if time.monotonic() + retry_s >= deadline:
                raise
        time.sleep(retry_s)
        retry_s = min(2 * retry_s, _MAX_RETRY_S)


def await_all(store: Store, rank: int, world_size: int, deadline: float) -> None:
    """Wait until every rank is at the store; gloo alone would give each further rank the whole time anew.

    Raises: RuntimeError: some did not come in time.
    """
    store.set(f"here/{rank}", "yes")
    store.wait([f"here/{number}" for number in range(world_size)], _left(deadline))


def _left(deadline: float) -> timedelta:
    """The time from now on, at least 10 ms: torch takes none for no limit."""
    return timedelta(seconds=max(0.01, deadline - time.monotonic()))


def use_interface(name: str) -> None:
    """Have gloo and NCCL listen on this interface, unless the environment says otherwise.

    By itself gloo takes the address that the hostname resolves to, on many machines a loopback one, and NCCL
    the first interface it finds. NCCL takes a name for a prefix (eth0.100, too) where it has no "=".
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")


def interface_towards(address: str) -> str:
    """Name of the interface whose address this host uses to reach `address` (`ip:port`).

    Raises: OSError: there is no way from here to there.
    """
    import psutil

    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))
        own = probe.getsockname()[0]
    if own.startswith("127."):
        return "lo"
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == own for one in addresses):
            return name
    raise OSError(f"no interface of this host has the address {own}, from which {host} would be reached")
