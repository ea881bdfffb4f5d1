"""How often a run's formations may break before the run has to begin again from a checkpoint."""

from __future__ import annotations


class Patience:
    """Counts the formations that broke without a step in between, whatever broke them."""

    def __init__(self, max_failures: int):
        self._max_failures = max_failures
        self.broken: str | None = None
        """Why the formation that is left could not go on; None: it was asked to stop, or there was none."""
        self._num_failures = 0
        self._failed_step = -1

    def begin(self) -> None:
        """All workers are new."""
        self.broken, self._num_failures, self._failed_step = None, 0, -1

    def broke(self, reason: str) -> None:
        """The formation cannot go on; the first reason is the one that the others follow from."""
        self.broken = self.broken or reason

    @property
    def is_spent(self) -> bool:
        """Whether another try would be one too many."""
        return self.broken is not None and self._num_failures >= self._max_failures

    @property
    def verdict(self) -> str:
        """What is to be said where it is spent, without the reason."""
        return f"{self._num_failures + 1} losses without a step in between"

    def ordered(self, step: int) -> None:
        """The next formation is ordered; its ranks hold the state after `step` at most."""
        if self.broken is not None:
            self._num_failures += 1
            self._failed_step = step
        self.broken = None

    def stepped(self, step: int) -> None:
        """The formation trains, and has told of a step."""
        if step > self._failed_step:
            self._num_failures = 0
