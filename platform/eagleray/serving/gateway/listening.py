"""The gateways' port: shared by those of one cluster, and with nobody else."""

from __future__ import annotations

import contextlib
import ctypes
import secrets
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from eagleray.cluster import ports, processes
from eagleray.errors import ServiceError

BACKLOG = 2048

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27  # asm-generic/socket.h; Python has no names for them
_FLAGS_AT, _SYN, _SYN_AND_ACK = 13, 0x02, 0x12  # of the TCP header, where a TCP socket's filter begins
_NO_SYN = b"".join(
    struct.pack("=HBBI", *instruction)  # struct sock_filter of linux/filter.h
    for instruction in (
        (0x30, 0, 0, _FLAGS_AT),  # load the byte
        (0x54, 0, 0, _SYN_AND_ACK),  # and
        (0x15, 0, 1, _SYN),  # skip one if it is not that
        (0x06, 0, 0, 0),  # drop it
        (0x06, 0, 0, 0xFFFFFFFF),  # pass all of it
    )
)


@dataclass
class Place:
    """Where one gateway listens."""

    listener: socket.socket
    claim: Path
    """A file that says so to the next gateway of the cluster."""
    is_ending: bool = False
    """Whether the kernel begins no more connections here."""

    def accept(self) -> socket.socket:
        """Take a connection. Raises: OSError, BlockingIOError where there is none."""
        sock, _ = self.listener.accept()
        if self.is_ending:  # a connection has its listener's filter, unless it is older
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        return sock

    def begin_no_more(self) -> None:
        """Have the kernel begin no more connections here, while it completes those that are begun.

        A connection is the listener's from its first packet on, and is reset with it, even if its client
        has been told that it is made. So before a listener is closed it passes over first packets for some
        round trips. A client sends its own again after a second, and then comes to another gateway of the
        port. Where the kernel has no such filters all is as before.
        """
        if sys.platform == "linux":
            code = ctypes.create_string_buffer(_NO_SYN, len(_NO_SYN))  # copied by the kernel
            program = struct.pack("@HP", len(_NO_SYN) // 8, ctypes.addressof(code))  # struct sock_fprog
            with contextlib.suppress(OSError):
                self.listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
                self.is_ending = True

    def leave(self) -> None:
        """Listen no more."""
        self.listener.close()
        self.claim.unlink(missing_ok=True)


def listen(host: str, port: int, claims: Path) -> Place:
    """Listen on the port, beside other gateways of the cluster; 0 takes any free one.

    The kernel lets any program of the same user in on a port that is to be shared, and gives each a part of
    the connections. So a gateway takes one that somebody listens on already only where a gateway of its own
    cluster lives: each has a file in the folder `claims`.

    Raises:
        ServiceError: another program has the port, or there is no such address here.
    """
    claims.mkdir(parents=True, exist_ok=True, mode=0o700)
    me = processes.this_process()
    claim = claims / f"{me.pid}-{me.start}-{secrets.token_hex(4)}"
    claim.touch(mode=0o600)  # first: of two that start at once each is to find the other's
    try:
        if port and not _are_there_others(claim) and not ports.is_free(host, port):
            raise ServiceError(
                f"port {port} of {host} is in use by another program, or {host} is no address of this "
                "machine; end that program, or give the ingress another port"
            )
        return Place(_listener(host, port), claim)
    except BaseException:
        claim.unlink(missing_ok=True)
        raise


def _listener(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setblocking(False)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ServiceError(f"the ingress cannot listen on port {port} of {host}: {error.strerror}") from error
    return listener


def _are_there_others(mine: Path) -> bool:
    """Whether another gateway lives that has a file beside `mine`; files of those that do not are removed."""
    is_found = False
    for path in mine.parent.glob("*-*-*"):
        pid, start, _ = path.name.split("-")
        if path == mine:
            continue
        if processes.Process(int(pid), int(start)).is_alive:
            is_found = True
        else:
            path.unlink(missing_ok=True)
    return is_found
