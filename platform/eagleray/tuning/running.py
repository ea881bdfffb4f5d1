"""A search while it runs: which trial comes next, what each came to, whether to go on. Knows no Ray."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from eagleray.capacity import Facts, Units
from eagleray.errors import SpecError
from eagleray.specs import TrainSpec, TuneSpec
from eagleray.training.observer import WorkerInfo
from eagleray.training.telemetry import Record
from eagleray.tuning.record import Trial
from eagleray.tuning.room import Order, Room, Use
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

    def paused(self, trial: Trial, saved_step: int, reason: str) -> None:
        """The trial has given its place back; it goes on from `saved_step` when there is room again."""
        ...

    def ended(self, trial: Trial, outcome: Mapping[str, Any], details: Sequence[str]) -> None:
        """The trial is over, or interrupted, as its `state` says; `outcome` is empty unless it finished."""
        ...

    def tick(self, *, is_waiting: bool) -> None:
        """A few times a second; whether no trial has a place, and one wants it."""
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


@dataclass
class _Start:
    """A start of a trial, from the moment it has a seat."""

    seat: Units
    began_s: float | None = None
    """When its process was up."""
    saved_s: float | None = None
    """When it was last saved, or began to take steps; until then nothing would be lost."""
    saved_step: int | None = None
    has_paused: bool = False
    has_to_leave: bool = False
    is_asked: bool = False
    """It knows that it has to leave."""


class RunningSearch:
    """The state of a search while it runs: what Ray Tune asks, and what it tells."""

    def __init__(
        self,
        spec: TuneSpec,
        trials: list[Trial],
        *,
        suggester: Suggester,
        observer: SearchObserver,
        stop: StopRequest,
        room: Room,
        num_concurrent: int,
    ):
        self.spec, self.trials, self.room = spec, trials, room
        self._suggester, self._observer, self._stop = suggester, observer, stop
        self._num_concurrent = num_concurrent
        self._left = [trial for trial in trials if not trial.is_over]
        self._started_at = time.monotonic()
        self._live: dict[int, _Start] = {}
        """Trials that have a seat, by number."""
        self._start_s = Facts().restart_cost_s
        """What the last start took before its first step."""
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
        """What the next trial's function is called with; None where none may start now (`is_exhausted`)."""
        while self._stop.reason is None and self._is_one_left:
            number = self._left[0].number if self._left else len(self.trials) + 1
            seat = self.room.take(number)
            if seat is None:
                return None
            trial = self._next_trial()
            try:
                spec = trial_spec(self.spec, trial.values)
            except SpecError as error:
                self.room.leave(trial.number)
                self._fail(trial, str(error))
                continue
            url = self._observer.prepared(trial, spec)
            self._live[trial.number] = _Start(seat)
            return {
                "number": trial.number,
                "spec": spec.model_dump_json(),
                "run_url": url,
                "metric": self.spec.metric,
                "seat": dict(seat),
                "claim": self.room.claim,
            }
        return None

    @property
    def is_exhausted(self) -> bool:
        """Whether there will be no more trials: one that runs might pause, and come again."""
        return self._stop.reason is not None or not (self._live or self._is_one_left)

    @property
    def _is_one_left(self) -> bool:
        return bool(self._left) or len(self.trials) < self.spec.num_trials

    def _next_trial(self) -> Trial:
        if self._left:
            return self._left.pop(0)
        number = len(self.trials) + 1
        trial = self._observer.created(number, self._suggester.suggest(number))
        self.trials.append(trial)
        return trial

    def trial(self, config: Mapping[str, Any]) -> Trial:
        """The trial that has this configuration."""
        return self.trials[config["number"] - 1]

    def reported(self, trial: Trial, report: Mapping[str, Any]) -> None:
        """Take a report of `tuning.trial`."""
        start = self._live[trial.number]
        if started := report.get("started"):
            start.began_s = time.monotonic()
            trial.state = "running"
            workers = [WorkerInfo(**worker) for worker in started["workers"]]
            self._observer.started(trial, started["attempt"], workers)
        for record in report["records"]:
            if record["kind"] in ("step", "at"):
                trial.step = record["step"]
                trial.total_steps = record.get("total_steps", trial.total_steps)
            elif record["kind"] == "commit" or (record["kind"] == "phase" and record["name"] == "training"):
                self._saved(start, record["step"])
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
        if paused := report.get("paused"):
            start.has_paused, trial.step, start.saved_step = True, paused["step"], paused["saved_step"]

    def _saved(self, start: _Start, step: int) -> None:
        """Whatever it did up to this step is in its newest checkpoint."""
        if start.saved_s is None and start.began_s is not None:
            self._start_s = time.monotonic() - start.began_s
        start.saved_s, start.saved_step = time.monotonic(), step

    def judged(self, trial: Trial, count: int) -> None:
        """The scheduler ends the trial, which was evaluated `count` times."""
        trial.why_stopped = f"{self.spec.scheduler.kind}, after {count} evaluation{'s' * (count != 1)}"

    def completed(self, trial: Trial) -> None:
        """Ray Tune is done with the trial, or with a start of it: it comes again where it paused."""
        start = self._live[trial.number]
        if trial.error is not None:
            trial.state = "failed"
        elif trial.number in self._outcomes:
            trial.state = "finished"
        elif trial.why_stopped is None and (start.has_paused or start.has_to_leave):
            self._pause(trial, start)
            return
        else:
            trial.state = "stopped"
        self._end(trial)

    def _pause(self, trial: Trial, start: _Start) -> None:
        """It comes next when there is room again; those that paused before it were not as far."""
        trial.state = "paused" if trial.step else "waiting"
        self._account(trial)
        self.room.leave(trial.number)
        self._left.insert(0, trial)
        if start.saved_step is not None:
            self._observer.paused(trial, start.saved_step, self.room.reason)

    def lost(self, trial: Trial) -> None:
        """The trial's process ended too often."""
        start = self._live[trial.number]
        if start.has_to_leave:
            self._pause(trial, start)
        else:
            self._fail(trial, "its process ended, and so did those that were started in its place")

    def recovered(self, trial: Trial) -> None:
        """The trial's process ended; another takes its place."""
        before = self._live[trial.number]
        self._account(trial)
        self._live[trial.number] = _Start(before.seat, has_to_leave=before.has_to_leave)
        if before.has_to_leave:  # it was ended for that, and is not to start again
            self._live[trial.number].saved_step = before.saved_step
            return
        trial.state = "waiting"
        self._observer.recovered(trial)

    def orders(self) -> list[tuple[Trial, Order]]:
        """The trials that have to leave their seats, each until it has left."""
        found = [(self.trials[order.number - 1], order) for order in self.room.orders(self._progress)]
        for trial, _ in found:
            self._live[trial.number].has_to_leave = True
        return found

    def may_be_ended(self, trial: Trial, order: Order) -> bool:
        """Whether its process is to be ended: it has not begun, and nothing is lost, or it is late.

        A trial of several workers sees to that by itself.
        """
        is_alone = self.spec.scaling.num_workers == 1
        return is_alone and (order.is_late or self._live[trial.number].saved_s is None)

    def is_to_be_asked(self, trial: Trial) -> bool:
        """Whether it does not know yet that it has to leave; from now on it does."""
        start = self._live[trial.number]
        was_asked, start.is_asked = start.is_asked, True
        return not was_asked

    def tell(self, *, in_use: Units, asked_for: Units) -> None:
        """Tell the room what the search has, by node: what Ray has given to it, and what it was asked for."""
        num_left = self.spec.num_trials - sum(trial.is_over for trial in self.trials)
        saved = [start.saved_s for start in self._live.values() if start.saved_s is not None]
        facts = Facts(
            since_commit_s=time.monotonic() - max(saved) if saved else 0.0,
            progress=min(map(self._progress, self._live), default=0.0),
            restart_cost_s=self._start_s,
        )
        self.room.tell(Use(in_use, asked_for, min(self._num_concurrent, num_left), facts))

    def keeps_process(self, seat: Units) -> bool:
        """Whether another trial is to go on in a process on this seat, whose trial has ended."""
        return self._stop.reason is None and self._is_one_left and self.room.has_free(seat)

    def _progress(self, number: int) -> float:
        trial = self.trials[number - 1]
        return trial.step / trial.total_steps if trial.total_steps else 0.0

    def _fail(self, trial: Trial, error: str) -> None:
        trial.state, trial.error = "failed", error
        self._end(trial)

    def _end(self, trial: Trial) -> None:
        self._account(trial)
        self.room.leave(trial.number)
        self._learn(trial)
        outcome = self._outcomes.pop(trial.number, {}) if trial.state == "finished" else {}
        self._observer.ended(trial, outcome, self._details.pop(trial.number, ()))

    def _account(self, trial: Trial) -> None:
        """Count the time of the start that has ended."""
        start = self._live.pop(trial.number, None)
        if start is not None and start.began_s is not None:
            trial.seconds += time.monotonic() - start.began_s

    def _learn(self, trial: Trial) -> None:
        value = None if trial.state == "failed" else trial.value_of(self.spec.metric)
        self._suggester.tell(trial.number, trial.values, value)

    def attempt(self, tell: Callable[[], None]) -> None:
        """Call `tell`; what it raises ends the search, and is raised again at its end."""
        try:
            tell()
        except BaseException as error:
            self.failure = self.failure or error

    def tick(self) -> None:
        """Let the observer look around."""
        self._observer.tick(is_waiting=not self._live and self._is_one_left)

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
            if trial.state not in ("running", "paused"):
                continue
            trial.state = "stopped" if self._stop.reason == "time" else "interrupted"
            if trial.state == "stopped":
                trial.why_stopped = "time budget"
            self._account(trial)
            self._observer.ended(trial, {}, ())


class _Gone:
    """What a running search is in Ray Tune's own snapshots, which nobody reads."""
