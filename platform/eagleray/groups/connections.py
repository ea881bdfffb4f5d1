"""This process's TCP sockets, and which of them are a group's: gloo does not say.

A group knows where its ranks listen; a connection is its own where one of the two ends is such a place.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import termios
from pathlib import Path

from eagleray.groups.group import Endpoint, Group

_MIN_RTT_AT = 148
"""Where struct tcp_info (linux/tcp.h) has tcpi_min_rtt, microseconds, 32 bits."""
_FAR_US = 2000


def quicken(group: Group) -> int:
    """Take a near group's connections out of BBR's care; returns how many.

    BBR, the default of some machines, keeps so little under way where a round trip takes microseconds that 4
    ranks got 80-86 % of their 100 Mbit/s links instead of 94 %; on far links it does better than the others,
    so it stays where the shortest round trip was 2 ms or more.
    """
    own = {endpoint for _, endpoint in listening_endpoints()}
    num_changed = 0
    for _, connection in sockets():
        with connection:
            try:
                if is_listening(connection) or not belongs(connection, own, group.endpoints):
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
    own = {endpoint for _, endpoint in listening_endpoints()}
    num_bytes = 0
    for _, connection in sockets():
        with connection, contextlib.suppress(OSError):  # it ended in between
            if not is_listening(connection) and belongs(connection, own, group.endpoints):
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


def belongs(connection: socket.socket, own: set[Endpoint], endpoints: frozenset[Endpoint]) -> bool:
    """Whether a connection is one of gloo's between such endpoints. Raises: OSError: it has ended."""
    local, peer = connection.getsockname()[:2], connection.getpeername()[:2]
    return (local in own and local in endpoints) or peer in endpoints


def sockets() -> list[tuple[int, socket.socket]]:
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


def is_listening(connection: socket.socket) -> bool:
    """Whether it waits for others to connect."""
    return bool(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def listening_endpoints() -> list[tuple[int, Endpoint]]:
    """Inode and endpoint of each listening TCP socket of this process."""
    found = []
    for inode, connection in sockets():
        with connection:
            if is_listening(connection):
                found.append((inode, connection.getsockname()[:2]))
    return found


def inodes() -> set[int]:
    """Of this process's TCP sockets."""
    found = set()
    for inode, connection in sockets():
        with connection:
            found.add(inode)
    return found


def listening_inodes() -> set[int]:
    """Of those that listen."""
    return {inode for inode, _ in listening_endpoints()}
