"""Makes, breaks and closes process groups. torch is imported inside the functions.

gloo alone lets a survivor hang: after a peer's death a rank may wait for a live peer that has already failed
(20 of 20 kills of one of four ranks left one hanging for 4 s or more), and aborting a group does nothing. So
each group knows its own TCP endpoints, and `break_groups` shuts those sockets down: every pending operation,
here and on the peers, raises at once. But not one that had its message in part: gloo's Pair::signalException
(transport/tcp/pair.cc) forgets the receive and the sends under way, which then wait for their own time limit.
So who waits for large messages gives up by himself: `waiting.await_work`, `call_when_broken`.
"""

from __future__ import annotations

import ctypes
import socket
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from eagleray.groups.connections import (
    belongs,
    inodes,
    is_listening,
    listening_endpoints,
    listening_inodes,
    sockets,
)
from eagleray.groups.group import Backend, Endpoint, Group
from eagleray.groups.meeting import await_all, interface_towards, tcp_store, use_interface

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Store

_ENDPOINT_BYTES = 64
_open_groups: list[Group] = []
_broken_since: dict[int, float] = {}
"""Of those, by `id`, which were broken, and when."""
_listeners: dict[int, list[Callable[[], None]]] = {}
"""By a group's `id`, what is called when it is broken."""
_retired: deque[tuple[float, Any]] = deque()
"""When, and which process group was closed."""
_RETIRED_S = 2.0
_forming: list[_Forming] = []
"""While groups are being formed: one entry."""


def form(
    *,
    rank: int,
    world_size: int,
    backend: Backend,
    timeout_s: float,
    store_path: str | None = None,
    address: str | None = None,
) -> Group:
    """Form the default group. All ranks must call it; it listens on one interface only.

    Args:
        rank: of this process.
        world_size: number of ranks.
        backend: of the group.
        timeout_s: how long a rank waits for the others, here and in each later operation, seconds.
        store_path: a file that all ranks see (one machine), or
        address: `ip:port` where rank 0 will listen; gloo and NCCL then use each rank's interface towards it,
            unless its environment names another.

    Raises:
        ValueError: not exactly one of `store_path` and `address`.
        PeerLost: the ranks did not meet within the time, or there is no way from here to there.
    """
    import torch.distributed as dist

    from eagleray.errors import PeerLost

    if (store_path is None) == (address is None):
        raise ValueError("give either store_path or address")
    deadline = time.monotonic() + timeout_s
    before = listening_inodes()
    try:
        if store_path is not None:
            use_interface("lo")
            store: Store = dist.FileStore(store_path, world_size)
        else:
            assert address is not None
            use_interface(interface_towards(address))
            store = tcp_store(address, rank, world_size, deadline, is_broken=_is_broken)
            before |= listening_inodes()  # the store's own listener is not gloo's
        await_all(store, rank, world_size, deadline)
        timeout = timedelta(seconds=timeout_s)
        store.set_timeout(timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        assert dist.group.WORLD is not None
        return _register("default", dist.group.WORLD, backend, before)
    except (RuntimeError, OSError) as error:
        where = store_path if address is None else address
        raise PeerLost(
            f"rank {rank} of {world_size} could not meet the others at {where} in {timeout_s:g} s: {error}"
        ) from error


@dataclass
class _Forming:
    """Groups that are being formed."""

    before: set[int]
    """Inodes of the TCP sockets that this process had before."""
    is_broken: bool = False
    """Whoever still waits for another rank to listen gives up."""


def _is_broken() -> bool:
    """Whether `break_groups` was called while groups are formed."""
    return any(attempt.is_broken for attempt in _forming)


@contextmanager
def forming() -> Generator[None]:
    """While groups are formed within, `break_groups` breaks that too: every connection made since.

    Where it fails, all that was made of it is broken, so that the other ranks hear of it.
    """
    _forming.append(_Forming(inodes()))
    try:
        yield
    except BaseException:
        break_groups()
        raise
    finally:
        _forming.clear()


def new_group(name: str, *, backend: Backend, timeout_s: float, ranks: list[int] | None = None) -> Group:
    """One more group over the ranks of the default group, or some of them.

    All ranks that will be in it must call it, in the same order.

    Args:
        name: for messages.
        backend: of the group.
        timeout_s: see `form`.
        ranks: of the default group; None: all.

    Raises: PeerLost: a rank did not come.
    """
    import torch.distributed as dist

    from eagleray.errors import PeerLost

    before = listening_inodes()
    try:
        process_group = dist.new_group(
            ranks,
            backend=backend,
            timeout=timedelta(seconds=timeout_s),
            group_desc=name,
            use_local_synchronization=ranks is not None,
        )
        assert isinstance(process_group, dist.ProcessGroup)
        return _register(name, process_group, backend, before)
    except RuntimeError as error:
        raise PeerLost(f"rank {dist.get_rank()} could not form the group {name!r}: {error}") from error


@contextmanager
def telling_losses() -> Generator[None]:
    """What torch itself sends within, as DDP does when it is made and when it cuts its buckets anew.

    Raises: PeerLost: another rank's connection has gone, which torch tells as a RuntimeError.
    """
    from torch.distributed import DistError

    from eagleray.errors import PeerLost

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DistError) or "gloo/transport" in str(error):
            raise PeerLost(f"{error}; another rank died or stopped answering") from error
        raise


def close(group: Group) -> None:
    """Destroy the group; closing twice does nothing."""
    import torch.distributed as dist

    if group not in _open_groups:
        return
    _open_groups.remove(group)
    _broken_since.pop(id(group), None)
    _listeners.pop(id(group), None)
    if dist.is_initialized():
        _retire(group.process_group)
        dist.destroy_process_group(group.process_group)


def close_all() -> None:
    """Destroy every group of this process, the default one too; then another may be formed."""
    import torch.distributed as dist

    for group in _open_groups:
        _retire(group.process_group)
    for held in (_open_groups, _broken_since, _listeners):
        held.clear()
    if dist.is_initialized():
        _retire(dist.group.WORLD)
        dist.destroy_process_group()


def _retire(process_group: Any) -> None:
    """Keep it from being taken apart at once, and let go of those that were retired a while ago.

    torch 2.13 joins a gloo group's threads while it holds the interpreter lock, and one that just ends an
    operation may wait for that lock: a deadlock, seen with plain DDP. After a while none has anything to end.
    """
    now = time.monotonic()
    while _retired and now - _retired[0][0] > _RETIRED_S:
        _retired.popleft()
    _retired.append((now, process_group))


def leave(group: Group) -> None:
    """Never take the group apart: a thread waits in it, which nothing wakes, and whom that would wait for.

    Not when this process ends either.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group.process_group))


def call_when_broken(group: Group, function: Callable[[], None]) -> None:
    """Call it whenever `break_groups` has broken the group, in the thread that did, until it is closed."""
    _listeners.setdefault(id(group), []).append(function)


def break_groups() -> int:
    """Make every pending operation of this process's groups raise, on all ranks; returns the sockets shut.

    For use after a failure: the groups are of no use afterwards, but to be closed. Safe from any thread.
    """
    now = time.monotonic()
    for group in _open_groups:
        _broken_since.setdefault(id(group), now)
    endpoints = frozenset[Endpoint]().union(*(group.endpoints for group in _open_groups))
    own = {endpoint for _, endpoint in listening_endpoints()}
    attempt = _forming[0] if _forming else None
    if attempt is not None:
        attempt.is_broken = True
    num_shut = 0
    for inode, connection in sockets():
        with connection:
            if is_listening(connection):
                continue
            is_new = attempt is not None and inode not in attempt.before
            try:
                if is_new or belongs(connection, own, endpoints):
                    connection.shutdown(socket.SHUT_RDWR)
                    num_shut += 1
            except OSError:  # it ended in between
                continue
    for group in _open_groups:
        if group.backend == "nccl":
            group.process_group.abort()
    for function in [one for group in _open_groups for one in _listeners.get(id(group), ())]:
        function()
    return num_shut


def are_broken() -> bool:
    """Whether `break_groups` broke a group that is open: who computes alone hears of it in no other way."""
    return any(id(group) in _broken_since for group in _open_groups)


def broken_s(group: Group) -> float:
    """Seconds since `break_groups` broke it; 0.0 where it did not."""
    since_s = _broken_since.get(id(group))
    return 0.0 if since_s is None else time.monotonic() - since_s


def _register(name: str, process_group: ProcessGroup, backend: Backend, before: set[int]) -> Group:
    """The group with all ranks' endpoints, known to `break_groups` from here on."""
    endpoints = frozenset[Endpoint]()
    if backend == "gloo":
        own = [endpoint for inode, endpoint in listening_endpoints() if inode not in before]
        endpoints = _exchange(own, process_group)
    group = Group(name, process_group, process_group.rank(), process_group.size(), backend, endpoints)
    _open_groups.append(group)
    return group


def _exchange(own: list[Endpoint], process_group: ProcessGroup) -> frozenset[Endpoint]:
    """Every rank's endpoints: each sends one line of text in a block of fixed size."""
    import torch

    line = ",".join(f"{ip} {port}" for ip, port in own).encode()
    assert len(line) <= _ENDPOINT_BYTES, own
    block = torch.tensor(list(line.ljust(_ENDPOINT_BYTES)), dtype=torch.uint8)
    blocks = [torch.empty_like(block) for _ in range(process_group.size())]
    process_group.allgather([blocks], [block]).wait()
    entries = (entry for one in blocks for entry in bytes(one.tolist()).decode().strip().split(","))
    pairs = (entry.split() for entry in entries if entry)
    return frozenset((ip, int(port)) for ip, port in pairs)
