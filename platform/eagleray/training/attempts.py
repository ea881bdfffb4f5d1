"""The numbered starts of a run's workers: one small file each in the run's folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from eagleray.packaging import CheckpointStore, Folder

NOTE_LIMIT_S = 1.0
"""So long the workers wait for their number to be noted: where the storage stands still, they train on."""


def next_attempt(run: Folder) -> int:
    """Number of the next start of the workers: above every one that was made before."""
    names = run.child("attempts").list()
    attempts = [int(Path(name).stem) for name in names if not name.startswith(".")]
    store = CheckpointStore(run.child("checkpoints").url)
    return max([store.next_attempt(), *(number + 1 for number in attempts)])


def note_attempt(run: Folder, attempt: int, world_size: int) -> None:
    """Write down that the workers are up."""
    run.write_json(
        f"attempts/{attempt:06d}.json", {"attempt": attempt, "time": time.time(), "world_size": world_size}
    )


class Notes:
    """Notes a run's attempts as they are ordered; nothing here raises, whatever the storage does."""

    def __init__(self, run: Folder, say: Callable[[str], None], limit_s: float = NOTE_LIMIT_S):
        """`say` hears, from any thread, of an attempt that cannot be noted."""
        self._run, self._say, self._limit_s = run, say, limit_s

    def note(self, attempt: int, world_size: int) -> None:
        """Write it down before its workers train, so that no other driver gives the same number.

        Returns when that is done, or goes on without the caller after `limit_s`.
        """
        thread = threading.Thread(target=self._write, args=(attempt, world_size), daemon=True)
        thread.start()
        thread.join(self._limit_s)

    def _write(self, attempt: int, world_size: int) -> None:
        try:
            note_attempt(self._run, attempt, world_size)
        except Exception as error:  # the storage's own kinds, too
            reason = getattr(error, "strerror", None) or error
            self._say(f"attempt {attempt} cannot be noted in {self._run.url}: {reason}; training goes on")
