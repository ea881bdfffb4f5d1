"""How often a run's formations may break, and how long it waits for them to come about and to come apart."""

from __future__ import annotations

SLOW_FACTOR = 5.0
"""A rank hangs when it takes so many times its longest step."""
FORM_LIMIT_S = 20.0
"""For a formation to get from the order to its first step; twice as long after each that did not."""
MAX_UNMET = 3
"""Formations in a row that may not get there in time, also where `max_failures` is less: nothing failed."""
REGROUP_LIMIT_S = 10.0
"""For a rank to give up a broken formation that trained."""


class Patience:
    """Counts the formations that broke without a step in between, whatever broke them."""

    def __init__(self, max_failures: int):
        self._max_failures = max_failures
        self.broken: str | None = None
        """Why the formation that is left could not go on; None: it was asked to stop, or there was none."""
        self.is_unmet = False
        """It needed longer than it had to come about, and nobody was lost: that is no failure."""
        self._num_failures = self._num_unmet = 0
        self._failed_step = -1
        self.form_limit_s = FORM_LIMIT_S
        """It goes on where all workers are new: a checkpoint that takes long to read takes as long again."""
        self._has_trained = False

    def begin(self) -> None:
        """All workers are new."""
        self.broken, self._num_failures, self._failed_step = None, 0, -1
        self.is_unmet, self._num_unmet = False, 0

    def broke(self, reason: str) -> None:
        """The formation cannot go on; the first reason is the one that the others follow from."""
        self.broken = self.broken or reason

    def lost(self) -> None:
        """A worker is gone: a failure, whatever broke the formation."""
        self.is_unmet = False

    @property
    def is_spent(self) -> bool:
        """Whether another try would be one too many."""
        if self.is_unmet:
            return self._num_unmet > max(self._max_failures, MAX_UNMET)
        return self.broken is not None and self._num_failures >= self._max_failures

    @property
    def verdict(self) -> str:
        """What is to be said where it is spent, without the reason."""
        if self.is_unmet:
            return f"{self._num_unmet} formations in a row did not come about"
        return f"{self._num_failures + 1} losses without a step in between"

    def ordered(self, step: int) -> None:
        """The next formation is ordered; its ranks hold the state after `step` at most."""
        if self.broken is not None and not self.is_unmet:
            self._num_failures += 1
            self._failed_step = step
        self.broken, self.is_unmet, self._has_trained = None, False, False

    def did_not_meet(self, reason: str) -> None:
        """The ranks of a formation were not at its first step in time: they may need more of it."""
        self.form_limit_s *= 2
        self._num_unmet += 1
        self.is_unmet = self.broken is None
        self.broke(reason)

    def began(self) -> None:
        """The formation takes its first step."""
        self.form_limit_s, self._has_trained, self._num_unmet = FORM_LIMIT_S, True, 0

    def regroup_limit_s(self, step_s: float) -> float:
        """How long a rank whose steps took `step_s` at most may need to come out.

        One that computes, or reads a checkpoint, looks at nothing else.
        """
        return max(REGROUP_LIMIT_S if self._has_trained else self.form_limit_s, SLOW_FACTOR * step_s)

    def stepped(self, step: int) -> None:
        """The formation trains, and has told of a step."""
        if step > self._failed_step:
            self._num_failures = 0
