"""When a host must take itself for cut off from its cluster: pure, and how the head is heard."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace

_FEWEST_MISSED = 3
"""A host that stood still itself, suspended or out of memory, must ask again before it judges the network."""


@dataclass(frozen=True)
class Contact:
    """What a host knows of the way to the head."""

    heard_s: float
    """Monotonic time at which the head was last heard."""
    missed: int = 0
    """Questions since then that nobody answered."""

    def after(self, heard: bool, now_s: float) -> Contact:
        """This, and one more question."""
        return Contact(now_s) if heard else replace(self, missed=self.missed + 1)

    def is_lost(self, now_s: float, fence_s: float) -> bool:
        """Whether the host is cut off: it has heard nothing for `fence_s`, and has asked often."""
        return self.missed >= _FEWEST_MISSED and now_s - self.heard_s >= fence_s


def hears(address: tuple[str, int], timeout_s: float) -> bool:
    """Whether the machine at `address` answers a new connection, were it with a refusal.

    A GCS that is being restarted is refused by its machine, and one that hangs is still answered by the
    kernel: neither is a cut network, and the node's workers have no reason to end.
    """
    try:
        socket.create_connection(address, timeout=timeout_s).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    except OSError:
        return False
    return True
