"""Why all workers of a run end before it is over, where nothing has failed."""

from __future__ import annotations

import time


class Suspended(Exception):
    """Others need what the run holds: its workers have ended, and it goes on when it has seats again."""

    def __init__(self, reason: str, step: int = 0, *, num_workers: int = 0, is_forced: bool = False):
        """Say why.

        Args:
            reason: in words.
            step: the last one that was seen; 0: there was none since the workers were started.
            num_workers: that have ended.
            is_forced: the deadline passed before the ranks had committed: steps since the newest checkpoint
                are to be taken again.
        """
        super().__init__(reason)
        self.reason, self.step = reason, step
        self.num_workers, self.is_forced = num_workers, is_forced
        self.time = time.time()


class Restarting(Exception):
    """The run goes on at another size: Ray Train starts all workers anew, from what they have committed."""
