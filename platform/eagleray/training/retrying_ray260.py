"""Whether a run whose workers failed is tried again, and what the failure was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ray.exceptions import RayActorError, RayError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from eagleray.errors import EaglerayError, PeerLost
from eagleray.training.observer import START, Observer
from eagleray.training.reservation_ray260 import MAX_DEATHS_AT_START, last_line
from eagleray.training.stopping import Restarting, Suspended


class HasStepped(Protocol):
    """Knows how far the workers came."""

    has_stepped: bool
    """Whether they have told of a step since Ray Train started them."""


class RetryPolicy(DefaultFailurePolicy):
    """Ray's policy, but an error that would come again ends the run.

    That is an error of ours (loss not finite, bad data), one of the user's code before the first step, and a
    start that fails time after time: Ray 2.60 by itself tries those without end.
    """

    def __init__(self, failure_config: Any, observer: Observer, watch: HasStepped):
        super().__init__(failure_config)
        self._observer, self._watch = observer, watch
        self._num_failed_starts = 0
        """One after the other."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """RETRY or RAISE; the observer hears of it, where anything has failed."""
        failed = failures(training_failed_error)
        if any(isinstance(failure, Suspended) for failure in failed.values()):
            return FailureDecision.RAISE
        if any(isinstance(failure, Restarting) for failure in failed.values()):
            return FailureDecision.RETRY
        is_lost = any(isinstance(failure, RayActorError | PeerLost) for failure in failed.values())
        is_users = isinstance(training_failed_error, WorkerGroupError) and not is_lost
        self._num_failed_starts = self._num_failed_starts + 1 if START in failed else 0
        is_hopeless = self._num_failed_starts > MAX_DEATHS_AT_START or (
            is_users and not self._watch.has_stepped
        )
        if is_hopeless or final_error(training_failed_error) is not None:
            decision = FailureDecision.RAISE
        else:
            decision = super().make_decision(training_failed_error)
        self._observer.failed(failed, decision == FailureDecision.RETRY)
        return decision

    def _log_decision(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the observer says it in one line, without tracebacks."""


def failures(error: TrainingFailedError) -> dict[int, Exception]:
    """Each failed rank's exception; START stands for a start that failed, or the controller."""
    if isinstance(error, WorkerGroupError):
        return {rank: _unwrapped(failure) for rank, failure in error.worker_failures.items()}
    failure = getattr(error, "controller_failure", error)
    if isinstance(failure, WorkerGroupStartupFailedError):
        cause = last_line(failure.__cause__ if isinstance(failure.__cause__, RayError) else failure)
        failure = PeerLost(f"a worker was lost while the workers started: {cause}")
    return {START: failure}


def final_error(error: TrainingFailedError) -> EaglerayError | None:
    """The error of ours that would come again if the workers were started again, if there is one."""
    found = failures(error).values()
    if any(isinstance(failure, RayActorError) for failure in found):
        return None
    ours = [failure for failure in found if isinstance(failure, EaglerayError)]
    return next((failure for failure in ours if not isinstance(failure, PeerLost)), None)


def root_failure(failed: Mapping[int, Exception]) -> tuple[int, Exception]:
    """The rank and failure that the others follow from: a death, else what is not just a lost peer."""

    def order(item: tuple[int, Exception]) -> tuple[bool, bool, int]:
        rank, failure = item
        return not isinstance(failure, RayActorError), isinstance(failure, PeerLost), rank

    return min(failed.items(), key=order)


def _unwrapped(failure: Exception) -> Exception:
    """What the train function raised (its traceback in a note), or what ended its process."""
    raised = getattr(failure, "_base_exc", None)
    if raised is not None:
        if not getattr(raised, "__notes__", None):
            raised.add_note(getattr(failure, "_traceback_str", ""))
        return raised
    return getattr(failure, "health_check_failure", None) or failure
