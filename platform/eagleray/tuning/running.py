"""A search while it runs: which trial comes next, what each came to, whether to go on. Knows no Ray."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from eagleray.errors import SpecError
from eagleray.specs import TrainSpec, TuneSpec
from eagleray.training.observer import WorkerInfo
from eagleray.training.telemetry import Record
from eagleray.tuning.record import Trial
from eagleray.tuning.search import Suggester, trial_spec

HOPELESS = 5
"""The search ends when so many trials have ended and all of them failed."""


class SearchObserver(Protocol):
    """Hears of a search; called in the driver, by the thread that runs it."""

    def created(self, number: int, values: dict[str, Any]) -> Trial:
        """The next trial has these values: make its record."""
        ...

    def prepared(self, trial: Trial, spec: TrainSpec) -> str:
        """Make the trial's run folder, if it is not there; returns its URL."""
        ...

    def started(self, trial: Trial, attempt: int, workers: Sequence[WorkerInfo]) -> None:
        """The trial's workers are up."""
        ...

    def records(self, trial: Trial, records: Sequence[Record]) -> None:
        """The trial recorded these, oldest first."""
        ...

    def recovered(self, trial: Trial) -> None:
        """The trial's process was lost; it will be started again from its newest checkpoint."""
        ...

    def ended(self, trial: Trial, outcome: Mapping[str, Any], details: Sequence[str]) -> None:
        """The trial is over, or interrupted, as its `state` says; `outcome` is empty unless it finished."""
        ...

    def tick(self) -> None:
        """A few times a second."""
        ...


class StopRequest:
    """Why the search should end before its budget does, if it should; set by SIGTERM and SIGINT too."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def listen(self) -> None:
        """End the search at the first signal; the second one interrupts whatever goes on."""

        def stop(number: int, _: object) -> None:
            if self.reason is not None:
                raise KeyboardInterrupt
            self.reason = "signal"

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)


class RunningSearch:
    """The state of a search while it runs: what Ray Tune asks, and what it tells."""

    def __init__(
        self,
        spec: TuneSpec,
        trials: list[Trial],
        suggester: Suggester,
        observer: SearchObserver,
        stop: StopRequest,
    ):
        self.spec, self.trials = spec, trials
        self._suggester, self._observer, self._stop = suggester, observer, stop
        self._left = [trial for trial in trials if not trial.is_over]
        self._started_at = time.monotonic()
        self._running: dict[int, float] = {}
        self._outcomes: dict[int, Mapping[str, Any]] = {}
        self._details: dict[int, Sequence[str]] = {}
        self.failure: BaseException | None = None
        """What the observer raised: the search ends, and it is raised again."""
        for trial in trials:
            if trial.is_over:
                self._learn(trial)

    def __reduce__(self) -> Any:
        return _Gone, ()

    def next_config(self) -> dict[str, Any] | None:
        """What the next trial's function is called with; None where there are no more."""
        while self._stop.reason is None:
            trial = self._next_trial()
            if trial is None:
                return None
            try:
                spec = trial_spec(self.spec, trial.values)
            except SpecError as error:
                self._fail(trial, str(error))
                continue
            url = self._observer.prepared(trial, spec)
            return {
                "number": trial.number,
                "spec": spec.model_dump_json(),
                "run_url": url,
                "metric": self.spec.metric,
            }
        return None

    def _next_trial(self) -> Trial | None:
        if self._left:
            return self._left.pop(0)
        number = len(self.trials) + 1
        if number > self.spec.num_trials:
            return None
        trial = self._observer.created(number, self._suggester.suggest(number))
        self.trials.append(trial)
        return trial

    def trial(self, config: Mapping[str, Any]) -> Trial:
        """The trial that has this configuration."""
        return self.trials[config["number"] - 1]

    def reported(self, trial: Trial, report: Mapping[str, Any]) -> None:
        """Take a report of `tuning.trial`."""
        if started := report.get("started"):
            self._running[trial.number] = time.monotonic()
            trial.state = "running"
            workers = [WorkerInfo(**worker) for worker in started["workers"]]
            self._observer.started(trial, started["attempt"], workers)
        for record in report["records"]:
            if record["kind"] in ("step", "at"):
                trial.step = record["step"]
                trial.total_steps = record.get("total_steps", trial.total_steps)
        if "evaluation" in report:
            names = (name for name in report if name.startswith("validation_"))
            trial.evaluated({"step": report["step"], **{name: report[name] for name in names}})
        self._observer.records(trial, report["records"])
        if outcome := report.get("outcome"):
            trial.evaluations = outcome["evaluations"]
            self._outcomes[trial.number] = outcome
        if failed := report.get("failed"):
            trial.error = failed["error"]
            self._details[trial.number] = failed["details"]

    def judged(self, trial: Trial, count: int) -> None:
        """The scheduler ends the trial, which was evaluated `count` times."""
        trial.why_stopped = f"{self.spec.scheduler.kind}, after {count} evaluation{'s' * (count != 1)}"

    def completed(self, trial: Trial) -> None:
        """Ray Tune is done with the trial."""
        if trial.error is not None:
            trial.state = "failed"
        elif trial.number in self._outcomes:
            trial.state = "finished"
        else:
            trial.state = "stopped"
        self._end(trial)

    def lost(self, trial: Trial) -> None:
        """The trial's process ended too often."""
        self._fail(trial, "its process ended, and so did those that were started in its place")

    def recovered(self, trial: Trial) -> None:
        """The trial's process ended; another takes its place."""
        self._account(trial)
        trial.state = "waiting"
        self._observer.recovered(trial)

    def _fail(self, trial: Trial, error: str) -> None:
        trial.state, trial.error = "failed", error
        self._end(trial)

    def _end(self, trial: Trial) -> None:
        self._account(trial)
        self._learn(trial)
        outcome = self._outcomes.pop(trial.number, {}) if trial.state == "finished" else {}
        self._observer.ended(trial, outcome, self._details.pop(trial.number, ()))

    def _account(self, trial: Trial) -> None:
        """Count the time of the start that has ended."""
        began = self._running.pop(trial.number, None)
        if began is not None:
            trial.seconds += time.monotonic() - began

    def _learn(self, trial: Trial) -> None:
        value = None if trial.state == "failed" else trial.value_of(self.spec.metric)
        self._suggester.tell(trial.number, trial.values, value)

    def running_seconds(self, trial: Trial) -> float:
        """Seconds of the trial so far."""
        began = self._running.get(trial.number)
        return trial.seconds + (0.0 if began is None else time.monotonic() - began)

    def attempt(self, tell: Callable[[], None]) -> None:
        """Call `tell`; what it raises ends the search, and is raised again at its end."""
        try:
            tell()
        except BaseException as error:
            self.failure = self.failure or error

    def tick(self) -> None:
        """Let the observer look around."""
        self._observer.tick()

    def should_stop(self) -> bool:
        """Whether the whole search ends now."""
        if self._stop.reason is None:
            time_s = self.spec.budget.time_s
            over = [trial for trial in self.trials if trial.is_over]
            if self.failure is not None:
                self._stop.reason = "error"
            elif time_s is not None and time.monotonic() - self._started_at >= time_s:
                self._stop.reason = "time"
            elif len(over) >= HOPELESS and all(trial.state == "failed" for trial in over):
                self._stop.reason = "hopeless"
        return self._stop.reason is not None

    def close(self) -> None:
        """Give the trials that still ran their last state."""
        if self.failure is not None:
            raise self.failure
        for trial in self.trials:
            if trial.state != "running":
                continue
            trial.state = "stopped" if self._stop.reason == "time" else "interrupted"
            if trial.state == "stopped":
                trial.why_stopped = "time budget"
            self._account(trial)
            self._observer.ended(trial, {}, ())


class _Gone:
    """What a running search is in Ray Tune's own snapshots, which nobody reads."""
