"""Makes, watches and breaks process groups. torch is imported inside the functions.

gloo alone lets a survivor hang: after a peer's death a rank may wait for a live peer that has already failed
(20 of 20 kills of one of four ranks left one hanging for 4 s or more), and aborting a group does nothing. So
each group knows its own TCP endpoints, and `break_groups` shuts those sockets down: every pending operation,
here and on the peers, raises at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import termios
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Store

Backend = Literal["gloo", "nccl"]
Endpoint = tuple[str, int]
"""Numeric address and port."""

_ENDPOINT_BYTES = 64
_FIRST_RETRY_S, _MAX_RETRY_S = 0.02, 0.5
_CONNECT_S = 10.0
_MIN_RTT_AT = 148
"""Where struct tcp_info (linux/tcp.h) has tcpi_min_rtt, microseconds, 32 bits."""
_FAR_US = 2000
_open_groups: list[Group] = []
_retired: deque[tuple[float, Any]] = deque()
"""When, and which process group was closed."""
_RETIRED_S = 2.0
_forming: list[_Forming] = []
"""While groups are being formed: one entry."""


@dataclass(frozen=True)
class Group:
    """A process group over all ranks, and what is needed to break it."""

    name: str
    process_group: ProcessGroup
    rank: int
    world_size: int
    backend: Backend
    endpoints: frozenset[Endpoint] = frozenset()
    """Where any rank's gloo listens for this group; empty on other backends."""


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
    before = _listening()
    try:
        if store_path is not None:
            _use_interface("lo")
            store: Store = dist.FileStore(store_path, world_size)
        else:
            assert address is not None
            _use_interface(_interface_towards(address))
            store = _tcp_store(address, rank, world_size, deadline)
            before |= _listening()  # the store's own listener is not gloo's
        _await_all(store, rank, world_size, deadline)
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


@contextmanager
def forming() -> Generator[None]:
    """While groups are formed within, `break_groups` breaks that too: every connection made since.

    Where it fails, all that was made of it is broken, so that the other ranks hear of it.
    """
    _forming.append(_Forming(_inodes()))
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

    before = _listening()
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
    if dist.is_initialized():
        _retire(group.process_group)
        dist.destroy_process_group(group.process_group)


def close_all() -> None:
    """Destroy every group of this process, the default one too; then another may be formed."""
    import torch.distributed as dist

    for group in _open_groups:
        _retire(group.process_group)
    _open_groups.clear()
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


def quicken(group: Group) -> int:
    """Take a near group's connections out of BBR's care; returns how many.

    BBR, the default of some machines, keeps so little under way where a round trip takes microseconds that 4
    ranks got 80-86 % of their 100 Mbit/s links instead of 94 %; on far links it does better than the others,
    so it stays where the shortest round trip was 2 ms or more.
    """
    own = {endpoint for _, endpoint in _listening_endpoints()}
    num_changed = 0
    for _, connection in _sockets():
        with connection:
            try:
                if _is_listening(connection) or not _belongs(connection, own, group.endpoints):
                    continue
                algorithm = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MIN_RTT_AT + 4)
                min_rtt_us = int.from_bytes(info[_MIN_RTT_AT:], sys.byteorder)
                if not algorithm.startswith(b"bbr") or min_rtt_us >= _FAR_US:
                    continue
            except (OSError, AttributeError):  # it ended in between; not Linux
                continue
            num_changed += any(_set_congestion(connection, name) for name in (b"cubic", b"reno"))
    return num_changed


def unsent_bytes(group: Group) -> int:
    """What the group's peers have not confirmed yet: to close it now would lose that.

    A send of gloo's is over when the kernel has the message, and gloo closes by RST, with which the kernel
    forgets it. The peer would wait in vain, and without an error where a full queue drops the RST as well.
    """
    own = {endpoint for _, endpoint in _listening_endpoints()}
    num_bytes = 0
    for _, connection in _sockets():
        with connection, contextlib.suppress(OSError):  # it ended in between
            if not _is_listening(connection) and _belongs(connection, own, group.endpoints):
                queued = fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))
                num_bytes += int.from_bytes(queued, sys.byteorder)
    return num_bytes


def _set_congestion(connection: socket.socket, algorithm: bytes) -> bool:
    """Whether the kernel lets this user choose it."""
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, algorithm)
    except OSError:
        return False
    return True


def _belongs(connection: socket.socket, own: set[Endpoint], endpoints: frozenset[Endpoint]) -> bool:
    """Whether a connection is one of gloo's between such endpoints. Raises: OSError: it has ended."""
    local, peer = connection.getsockname()[:2], connection.getpeername()[:2]
    return (local in own and local in endpoints) or peer in endpoints


def break_groups() -> int:
    """Make every pending operation of this process's groups raise, on all ranks; returns the sockets shut.

    For use after a failure: the groups are of no use afterwards, but to be closed. Safe from any thread.
    """
    endpoints = frozenset[Endpoint]().union(*(group.endpoints for group in _open_groups))
    own = {endpoint for _, endpoint in _listening_endpoints()}
    attempt = _forming[0] if _forming else None
    if attempt is not None:
        attempt.is_broken = True
    num_shut = 0
    for inode, connection in _sockets():
        with connection:
            if _is_listening(connection):
                continue
            is_new = attempt is not None and inode not in attempt.before
            try:
                if is_new or _belongs(connection, own, endpoints):
                    connection.shutdown(socket.SHUT_RDWR)
                    num_shut += 1
            except OSError:  # it ended in between
                continue
    for group in _open_groups:
        if group.backend == "nccl":
            group.process_group.abort()
    return num_shut


def _register(name: str, process_group: ProcessGroup, backend: Backend, before: set[int]) -> Group:
    """The group with all ranks' endpoints, known to `break_groups` from here on."""
    endpoints = frozenset[Endpoint]()
    if backend == "gloo":
        own = [endpoint for inode, endpoint in _listening_endpoints() if inode not in before]
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


def _tcp_store(address: str, rank: int, world_size: int, deadline: float) -> Store:
    """The store at `address`; rank 0 serves it from a socket that listens there and nowhere else.

    torch's own listens on all interfaces; `master_listen_fd` is its way to take a ready socket.
    """
    import torch.distributed as dist

    host, _, port = address.rpartition(":")
    if rank != 0:
        _await_listener(host, int(port), deadline)
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


def _await_listener(host: str, port: int, deadline: float) -> None:
    """Return once somebody accepts connections there.

    torch's store would try again when its time is up: 5.1 s in place of 2 (2.13).

    Raises: OSError: of the last try before the deadline, or `break_groups` was called meanwhile.
    """
    retry_s = _FIRST_RETRY_S
    while True:
        if any(attempt.is_broken for attempt in _forming):
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


def _await_all(store: Store, rank: int, world_size: int, deadline: float) -> None:
    """Wait until every rank is at the store; gloo alone would give each further rank the whole time anew.

    Raises: RuntimeError: some did not come in time.
    """
    store.set(f"here/{rank}", "yes")
    store.wait([f"here/{number}" for number in range(world_size)], _left(deadline))


def _left(deadline: float) -> timedelta:
    """The time from now on, at least 10 ms: torch takes none for no limit."""
    return timedelta(seconds=max(0.01, deadline - time.monotonic()))


def _use_interface(name: str) -> None:
    """Have gloo and NCCL listen on this interface, unless the environment says otherwise.

    By itself gloo takes the address that the hostname resolves to, on many machines a loopback one, and NCCL
    the first interface it finds. NCCL takes a name for a prefix (eth0.100, too) where it has no "=".
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")


def _interface_towards(address: str) -> str:
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


def _sockets() -> list[tuple[int, socket.socket]]:
    """Inode and a duplicate of each of this process's TCP sockets; the caller closes the duplicates."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
            if not target.startswith("socket:["):
                continue
            duplicate = os.dup(int(entry.name))
        except OSError:  # closed in between
            continue
        inode = int(target[8:-1])
        if os.fstat(duplicate).st_ino != inode:  # the number was given to another file in between
            os.close(duplicate)
            continue
        connection = socket.socket(fileno=duplicate)
        is_tcp = connection.family in (socket.AF_INET, socket.AF_INET6) and (
            connection.type == socket.SOCK_STREAM
        )
        if is_tcp:
            found.append((inode, connection))
        else:
            connection.close()
    return found


def _is_listening(connection: socket.socket) -> bool:
    return bool(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _listening_endpoints() -> list[tuple[int, Endpoint]]:
    """Inode and endpoint of each listening TCP socket of this process."""
    found = []
    for inode, connection in _sockets():
        with connection:
            if _is_listening(connection):
                found.append((inode, connection.getsockname()[:2]))
    return found


def _inodes() -> set[int]:
    found = set()
    for inode, connection in _sockets():
        with connection:
            found.add(inode)
    return found


def _listening() -> set[int]:
    return {inode for inode, _ in _listening_endpoints()}
