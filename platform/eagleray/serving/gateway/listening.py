"""The gateways' port: shared by those of one cluster, and with nobody else."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from eagleray.cluster import ports, processes
from eagleray.errors import ServiceError
from eagleray.serving.gateway import leaving

BACKLOG = 2048


@dataclass
class Place:
    """Where one gateway listens."""

    listener: socket.socket
    claim: Path
    """A file that says so to the next gateway of the cluster."""
    is_ending: bool = False
    """Whether the kernel begins no more connections here, or soon will not."""
    turn: int | None = None
    """A descriptor, while it is this gateway's turn to leave."""

    def accept(self) -> socket.socket:
        """Take a connection. Raises: OSError, BlockingIOError where there is none."""
        sock, _ = self.listener.accept()
        if self.is_ending:
            leaving.clear(sock)
        return sock

    async def begin_no_more(self) -> None:
        """Have the kernel begin no more connections here, while it completes those that are begun.

        Where the kernel has no such programs it goes on as before.
        """
        if sys.platform != "linux":
            return
        self.is_ending = True
        with contextlib.suppress(OSError):
            if _num_others(self.claim):
                self.turn = await leaving.turn(self.claim.parent / "leaving")
            if self.turn is not None and (num_others := _num_others(self.claim)):  # some have left meanwhile
                await leaving.turn_away(self.listener, num_others + 1)
        with contextlib.suppress(OSError):
            leaving.pass_over(self.listener)

    def leave(self) -> None:
        """Listen no more."""
        if self.turn is not None:
            with contextlib.suppress(OSError):
                leaving.release(self.listener)
        self.listener.close()
        self.claim.unlink(missing_ok=True)
        if self.turn is not None:
            os.close(self.turn)
            self.turn = None


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
        if port and not _num_others(claim) and not ports.is_free(host, port):
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
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # one that was killed while it left may have been turning away
                leaving.release(listener)
    except OSError as error:
        listener.close()
        raise ServiceError(f"the ingress cannot listen on port {port} of {host}: {error.strerror}") from error
    return listener


def _num_others(mine: Path) -> int:
    """How many other gateways live that have a file beside `mine`; files of those that do not are removed."""
    found = 0
    for path in mine.parent.glob("*-*-*"):
        pid, start, _ = path.name.split("-")
        if path == mine:
            continue
        if processes.Process(int(pid), int(start)).is_alive:
            found += 1
        else:
            path.unlink(missing_ok=True)
    return found
