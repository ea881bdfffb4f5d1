"""How often a run's formations may break, and how long it waits for them to come about and to come apart."""

from __future__ import annotations

SLOW_FACTOR = 5.0
"""A rank hangs when it takes so many times its longest step."""
FORM_LIMIT_S = 20.0
"""For a formation to get from the order to its first step; twice as long after each that did not."""
REGROUP_LIMIT_S = 10.0
"""For a rank to give up a broken formation that trained."""


class Patience:
    """Counts the formations that broke without a step in between, whatever broke them."""

    def __init__(self, max_failures: int):
        self._max_failures = max_failures
        self.broken: str | None = None
        """Why the formation that is left could not go on; None: it was asked to stop, or there was none."""
        self._num_failures = 0
        self._failed_step = -1
        self.form_limit_s = FORM_LIMIT_S
        """It goes on where all workers are new: a checkpoint that takes long to read takes as long again."""
        self._has_trained = False

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
        self.broken, self._has_trained = None, False

    def did_not_meet(self) -> None:
        """The ranks of a formation were not at its first step in time: they may need more of it."""
        self.form_limit_s *= 2

    def began(self) -> None:
        """The formation takes its first step."""
        self.form_limit_s, self._has_trained = FORM_LIMIT_S, True

    def regroup_limit_s(self, step_s: float) -> float:
        """How long a rank whose steps took `step_s` at most may need to come out.

        One that computes, or reads a checkpoint, looks at nothing else.
        """
        return max(REGROUP_LIMIT_S if self._has_trained else self.form_limit_s, SLOW_FACTOR * step_s)

    def stepped(self, step: int) -> None:
        """The formation trains, and has told of a step."""
        if step > self._failed_step:
            self._num_failures = 0
