"""A rank that finds that another does something else says so to all, before the group is broken.

Those that learn of it by a broken connection only would look for a dead rank. The group's own store carries
the sentence: it is there on every backend, and its keys are this group's alone.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

from torch.distributed import PrefixStore, ProcessGroup, Store, TCPStore, distributed_c10d

_KEY = "eagleray/mismatch"
_WAIT_S = 0.5
"""The store may be gone with its rank, or not answer."""
_DYING_S = 0.02
"""A process that dies closes its sockets one after the other."""


def leave(process_group: ProcessGroup, text: str) -> None:
    """Say what was found; the last one's sentence stays."""
    _with_store(process_group, lambda store: store.set(_KEY, text))


def find(process_group: ProcessGroup) -> str | None:
    """What another rank has said, if any has and the store can be reached."""
    found: list[str] = []

    def read(store: Store) -> None:
        if store.check([_KEY]):
            found.append(store.get(_KEY).decode())

    _with_store(process_group, read)
    return found[0] if found else None


def _with_store(process_group: ProcessGroup, work: Callable[[Store], None]) -> None:
    """Do it at once, or not: whoever calls has another error to raise."""

    def run() -> None:
        try:
            store = base = distributed_c10d._get_process_group_store(process_group)
            while isinstance(base, PrefixStore):
                base = base.underlying_store
            if isinstance(base, TCPStore):  # whose client writes a page to the log where nobody listens
                time.sleep(_DYING_S)
                socket.create_connection((base.host, base.port), _WAIT_S).close()
            work(store)
        except Exception:  # of the network, of torch, a KeyError: there is no store any more
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_WAIT_S)
