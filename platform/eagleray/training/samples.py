"""What a run's steps have consumed, as every rank remembers it until a checkpoint in the storage holds it.

All ranks remember the same, so that whoever is rank 0 after a loss can write the journal on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eagleray.data.digests import Entry, Total
from eagleray.packaging import Checkpoint
from eagleray.packaging.journal import Segment


class Samples:
    """The total of all steps from the run's first, and one entry for each since the newest checkpoint."""

    def __init__(self) -> None:
        self.total = Total()
        self.parent: tuple[int, int] | None = None
        """(attempt, step) of the checkpoint that the entries start from; None: the run's beginning."""
        self._entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        """Remember a step that was taken."""
        self.total = self.total.plus([entry])
        self._entries.append(entry)

    def segment(self, attempt: int, step: int) -> Segment:
        """The journal's part of a commit after `step`, the last that was added."""
        return Segment(attempt, step, self.parent, tuple(entry.to_json() for entry in self._entries))

    def state(self) -> dict[str, Any]:
        """What the checkpoint of such a commit carries."""
        return {**self.total.to_json(), "parent": None if self.parent is None else list(self.parent)}

    def is_stored(self, step: int) -> bool:
        """Whether a checkpoint after that step is known to lie in the storage, and is the newest."""
        return self.parent is not None and self.parent[1] == step

    def settle(self, attempt: int, step: int) -> None:
        """A checkpoint lies in the storage: forget the entries that its segment has. An older one is fine."""
        if self.parent is None or (attempt, step) > self.parent:
            self.parent = (attempt, step)
            self._entries = [entry for entry in self._entries if entry.step > step]

    def restart(self, checkpoint: Checkpoint | None) -> None:
        """Go on from a checkpoint that was loaded, or from the run's beginning; everything else is forgotten.

        A checkpoint of a version without a journal counts as zero samples.
        """
        self.total, self.parent, self._entries = Total(), None, []
        if checkpoint is not None:
            self.parent = (checkpoint.attempt, checkpoint.step)
            if "samples" in checkpoint.state:
                self.total = Total.from_json(checkpoint.state["samples"])

    def to_json(self) -> dict[str, Any]:
        """All of it, for a rank that comes new."""
        return {**self.state(), "entries": [entry.to_json() for entry in self._entries]}

    def load(self, fields: Mapping[str, Any]) -> None:
        """Remember what another rank's `to_json` says, and nothing else."""
        self.total = Total.from_json(fields)
        self.parent = None if fields["parent"] is None else (fields["parent"][0], fields["parent"][1])
        self._entries = [Entry.from_json(entry) for entry in fields["entries"]]
