"""A rank that finds that another does something else says so to all, before the group is broken.

Those that learn of it by a broken connection only would look for a dead rank. The group's own store carries
the sentence: it is there on every backend, and its keys are this group's alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch.distributed import ProcessGroup, distributed_c10d

_KEY = "eagleray/mismatch"
_WAIT_S = 1.0
"""The store may be gone with its rank."""


def leave(process_group: ProcessGroup, text: str) -> None:
    """Say what was found; the last one's sentence stays."""

    def write() -> None:
        distributed_c10d._get_process_group_store(process_group).set(_KEY, text)

    _try(write)


def find(process_group: ProcessGroup) -> str | None:
    """What another rank has said, if any has and the store can be reached."""
    found: list[str] = []

    def read() -> None:
        store = distributed_c10d._get_process_group_store(process_group)
        if store.check([_KEY]):
            found.append(store.get(_KEY).decode())

    _try(read)
    return found[0] if found else None


def _try(work: Callable[[], None]) -> None:
    """Do it within a second, or not: whoever calls has another error to raise."""

    def run() -> None:
        try:
            work()
        except Exception:  # RuntimeError, KeyError, torch's own: there is no store any more
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_WAIT_S)
