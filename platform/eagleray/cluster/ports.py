"""Free TCP ports, taken below the range from which the kernel hands out ports for connections."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from pathlib import Path

_LOWEST = 20_000  # Ray's workers take 10002-19999
_DEFAULT_EPHEMERAL = 32_768


def is_free(host: str, port: int) -> bool:
    """Whether a listener could be bound to `port` of `host` now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_ports(host: str, names: Iterable[str], *, taken: Iterable[int] = ()) -> dict[str, int]:
    """One free port of `host` for each name, none of them in `taken`.

    A port that the kernel itself would hand out (bind to 0) may be gone, as the local end of someone's
    connection, before Ray binds it seconds later; ports below that range are safe from this.

    Raises:
        OSError: too few ports are free.
    """
    candidates = list(range(_LOWEST, max(_ephemeral_low(), _LOWEST + 2_000)))
    random.SystemRandom().shuffle(candidates)
    used, found = set(taken), {}
    for name in names:
        while candidates:
            port = candidates.pop()
            if port not in used and is_free(host, port):
                found[name] = port
                break
        else:
            raise OSError(f"no free TCP port on {host} between {_LOWEST} and {_ephemeral_low()}")
    return found


def _ephemeral_low() -> int:
    """The lowest port that the kernel gives to outgoing connections."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return _DEFAULT_EPHEMERAL
