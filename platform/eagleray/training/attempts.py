"""The numbered starts of a run's workers: one small file each in the run's folder."""

from __future__ import annotations

import time
from pathlib import Path

from eagleray.packaging import CheckpointStore, Folder


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
