"""The sockets below links: where a replica listens, and how a gateway reaches it."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import time
from pathlib import Path
from typing import TypedDict

from eagleray.errors import ServiceError

Address = str
"""A unix socket's absolute path, or "host:port"."""


class ReplicaAddress(TypedDict):
    """Where a replica listens: plain values, to be published."""

    unix: Address
    """A path, good on its node only."""
    tcp: Address
    instance: str
    """Hexadecimal; another one at each start."""
    node: str
    protocol: int


_NEW = ".new"
_START_S = 60.0
"""Nobody takes so long from binding a socket to listening."""
_MAX_PATH_BYTES = 107
_BACKLOG = 128
_MAX_PORT = 65_535
_SEND_BYTES = 1 << 20


def is_unix(address: Address) -> bool:
    """Whether it is a path."""
    return address.startswith("/")


async def reach(address: Address) -> socket.socket:
    """A connected socket that does not block. Raises: OSError; ValueError: it is no address."""
    loop = asyncio.get_running_loop()
    if is_unix(address):
        sock, where = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), address
    else:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or int(port) > _MAX_PORT:  # which getaddrinfo cuts off at 16 bits
            raise ValueError(f"{address!r} is no address; give a unix socket's path or host:port")
        found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, kind, protocol, _, where = found[0]
        sock = socket.socket(family, kind, protocol)
    try:
        prepare(sock)
        await loop.sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


def prepare(sock: socket.socket) -> None:
    """Set what both ends of a link want."""
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
    else:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def private_folder(folder: Path) -> None:
    """Make it where it is not there. Raises: ServiceError: others might enter it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ServiceError(
            f"{folder}: links need a folder that only their user can enter; it is of user {found.st_uid}, "
            f"mode {stat.S_IMODE(found.st_mode):o}; chmod 700 it, or name another one"
        )


def remove_stale(folder: Path) -> None:
    """Remove the sockets of replicas that were killed: nobody listens there any more."""
    for path in folder.iterdir():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            try:
                is_starting = path.suffix == _NEW and time.time() - path.stat().st_mtime < _START_S
                if path.is_socket() and not is_starting:
                    sock.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:  # gone by now, or its queue is full: somebody listens
                pass


def listen_unix(path: Path) -> socket.socket:
    """A listening socket that only its user can reach. Raises: ServiceError."""
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise ServiceError(
            f"{path}: a unix socket's path takes {_MAX_PATH_BYTES} bytes; give a shorter folder"
        )
    # Under another name at first: a socket that is bound and does not listen yet looks stale.
    new = path.with_suffix(_NEW)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(new))
        new.chmod(0o600)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
        new.rename(path)
    except OSError as error:
        sock.close()
        new.unlink(missing_ok=True)
        raise ServiceError(f"{path}: a replica cannot listen there: {error}") from error
    return sock


def listen_tcp(host: str) -> tuple[socket.socket, Address]:
    """A listening socket on a free port of `host`, and its address. Raises: ServiceError."""
    is_v6 = ":" in host
    try:
        sock = socket.create_server(
            (host, 0), family=socket.AF_INET6 if is_v6 else socket.AF_INET, backlog=_BACKLOG
        )
    except OSError as error:
        raise ServiceError(f"a replica cannot listen at {host!r}: {error}") from error
    sock.setblocking(False)
    return sock, f"{f'[{host}]' if is_v6 else host}:{sock.getsockname()[1]}"
