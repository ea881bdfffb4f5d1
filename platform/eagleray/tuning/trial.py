"""A trial in its actor: what Ray Tune runs, and what it reports.

A report is a dictionary with `records` (`training.telemetry`, those since the last report) and one of

    started      attempt number and workers, before anything else is imported
    evaluation   how many evaluations there were; beside it `step`, `is_last` and the metrics
    outcome      the trial trained to its end: what `training.worker.run` returned
    paused       it was asked to, and goes on later: the last step, and the newest one that is saved
    failed       why it did not, in words

or none of them. A report waits for the driver, which may end the trial there: Ray Tune raises SystemExit.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eagleray.errors import EaglerayError, TrainingError
from eagleray.packaging import Folder
from eagleray.specs import TrainSpec
from eagleray.training.observer import START, Change, WorkerInfo
from eagleray.training.telemetry import Record
from eagleray.tuning.record import EVALUATIONS, Evaluation, read_evaluations

REPORT_EVERY_S = 1.0
GROUP_TIMEOUT_S = 60.0


class Reporter:
    """Turns the records of a trial into its reports; it is also the sink of a trial of one worker."""

    def __init__(self, run: Folder, metric: str, report: Callable[[dict[str, Any]], None]):
        self._run, self._metric, self._report = run, metric, report
        self._evaluations: list[Evaluation] = read_evaluations(run)
        self._records: list[Record] = []
        self._at: Record | None = None
        self._measured: Evaluation | None = None
        self._total_steps: int | None = None
        self._step = self._saved_step = 0
        self._unsaved_step: int | None = None
        """That the workers stopped at, and the storage did not take."""
        self._reported_at = time.monotonic()

    def put(self, kind: str, **values: Any) -> None:
        """Take a record of now."""
        self.take({"kind": kind, "time": time.time(), **values})

    def at(self, step: int) -> None:
        """This step has just been taken."""
        self._step = step
        self._at = {"kind": "at", "time": time.time(), "step": step}

    def take(self, record: Record) -> None:
        """Take a record; reports an evaluation once its checkpoint is there, the rest every second.

        And that steps begin, before the first one: until then the driver may end the process, and nothing is
        lost.

        Raises: TrainingError: the metric is not finite.
        """
        self._records.append(record)
        kind = record["kind"]
        if kind == "step":
            self._total_steps = record["total_steps"]
        elif kind == "phase" and record["name"] == "training":
            self._evaluations = [one for one in self._evaluations if one["step"] <= record["step"]]
            self._step = self._saved_step = record["step"]
            self._send({})
        elif kind == "evaluation":
            self._measure(record)
        elif kind == "unsaved":
            self._unsaved_step = record["step"]
        elif kind == "commit":
            self._saved_step = record["step"]
            if self._measured is not None and record["step"] == self._measured["step"]:
                self._tell_of_evaluation(self._measured)
                return
        if time.monotonic() - self._reported_at >= REPORT_EVERY_S:
            self._send({})

    def _tell_of_evaluation(self, measured: Evaluation) -> None:
        self._measured = None
        is_last = measured["step"] == self._total_steps
        self._send({"evaluation": len(self._evaluations), "is_last": is_last, **measured})

    def _measure(self, record: Record) -> None:
        measured = {"step": record["step"]}
        measured |= {name: value for name, value in record.items() if name.startswith("validation_")}
        value = measured.get(self._metric)
        if value is None or not math.isfinite(value):
            found = "was not measured" if value is None else f"is {value}"
            raise TrainingError(
                f"step {record['step']}: {self._metric} {found}; "
                "lower optimizer.lr, set training.clip_norm, or look at the data"
            )
        earlier = [one for one in self._evaluations if one["step"] < record["step"]]
        self._evaluations, self._measured = [*earlier, measured], measured
        self._run.write_json(EVALUATIONS, self._evaluations)

    def started(self, attempt: int, workers: Sequence[WorkerInfo]) -> None:
        """Tell that the workers are up."""
        self._send({"started": {"attempt": attempt, "workers": [vars(worker) for worker in workers]}})

    def finished(self, outcome: Mapping[str, Any]) -> None:
        """Tell that the trial trained to its end."""
        self._send({"outcome": {**outcome, "evaluations": self._evaluations}})

    def paused(self, step: int | None = None) -> None:
        """Tell that the trial has stopped between two steps, to go on later.

        `step`, if given, is saved, unless the workers have said that the storage did not take it.
        """
        if step is not None:
            self._step = max(step, self._step)
            if self._step != self._unsaved_step:
                self._saved_step = self._step
        self._send({"paused": {"step": self._step, "saved_step": self._saved_step}})

    def failed(self, error: Exception) -> None:
        """Tell why it did not."""
        self._send({"failed": {"error": in_words(error), "details": details_of(error)}})

    def _send(self, values: dict[str, Any]) -> None:
        records, self._records = self._records, []
        if self._at is not None:
            records.append(self._at)
            self._at = None
        self._reported_at = time.monotonic()
        self._report({**values, "records": records})


class Pausing:
    """Whether the trial of this process has to pause; asked by the driver, from any thread."""

    def __init__(self) -> None:
        self._asked: tuple[float | None] | None = None
        self._obey: Callable[[float | None], None] = lambda _: None

    def ask(self, left_s: float | None) -> None:
        """Have it pause, also where it has not begun; `left_s`: seconds until it has to be gone, or None."""
        self._asked = (left_s,)
        self._obey(left_s)

    def obey(self, how: Callable[[float | None], None]) -> None:
        """From now on this is how."""
        self._obey = how
        if self._asked is not None:
            how(*self._asked)

    def forget(self) -> None:
        """Another trial comes into this process."""
        self._asked, self._obey = None, lambda _: None


PAUSING = Pausing()


def one_worker(config: Mapping[str, Any]) -> None:
    """Train a trial of one worker in this process; what Ray Tune runs in the trial's actor.

    Args:
        config: `spec` (the train spec's JSON), `run_url`, `metric`, and what only a trial of several workers
            needs: `seat`, its units by node, under the claim `claim`; {} and None where there is no ledger.
    """
    _run(config, _train_alone)


def many_workers(config: Mapping[str, Any]) -> None:
    """Drive a trial of several workers, a Ray Train run of its own; takes what `one_worker` takes."""
    _run(config, _train_together)


def _run(
    config: Mapping[str, Any],
    train: Callable[[TrainSpec, Folder, Reporter, Mapping[str, Any]], dict[str, Any] | None],
) -> None:
    from ray import tune

    run = Folder(config["run_url"])
    reporter = Reporter(run, config["metric"], tune.report)
    try:
        outcome = train(TrainSpec.model_validate_json(config["spec"]), run, reporter, config)
    except Exception as error:
        # Told in words, and not raised: Ray Tune would end the actor, and the next trial import torch anew.
        reporter.failed(error)
        return
    if outcome is None:
        reporter.paused()
    elif outcome.get("is_suspended"):
        reporter.paused(None if outcome["is_forced"] else outcome["step"])
    else:
        reporter.finished(outcome)


def _train_alone(
    spec: TrainSpec, run: Folder, reporter: Reporter, config: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The loop page in this thread, in a world of one; None where it was asked to pause."""
    from eagleray.training.attempts import next_attempt, note_attempt
    from eagleray.training.station import STATION

    STATION.begin()
    PAUSING.obey(lambda _: STATION.notice(1))
    attempt = next_attempt(run)
    note_attempt(run, attempt, world_size=1)
    reporter.started(attempt, [_this_worker()])

    from eagleray import groups
    from eagleray.training import worker
    from eagleray.training.life import Yielded

    with tempfile.TemporaryDirectory(prefix="eagleray-world-") as folder:
        groups.form(
            store_path=f"{folder}/store", rank=0, world_size=1, backend="gloo", timeout_s=GROUP_TIMEOUT_S
        )
        try:
            return worker.run(worker.Attempt(attempt, spec, run.url), rank=0, sink=reporter, station=STATION)
        except Yielded:
            return None
        finally:
            groups.close_all()


def _train_together(
    spec: TrainSpec, run: Folder, reporter: Reporter, config: Mapping[str, Any]
) -> dict[str, Any] | None:
    """A Ray Train run, driven from here; this actor holds no CPU. None where it paused before it began."""
    # Ray Train says in each trial what it asks for and who came; our driver shows it in the table.
    logging.getLogger("ray").setLevel(logging.WARNING)
    from eagleray.training.attempts import next_attempt
    from eagleray.training.reservation_ray260 import Reservation
    from eagleray.training.stopping import Suspended
    from eagleray.training.trainer import bundle, fit

    scaling, claim = spec.scaling, config["claim"]
    reservation = Reservation(
        bundle(spec),
        scaling.num_workers,
        scaling.label_selector,
        scaling.minimum,
        spares=scaling.spares,
        claim=claim,
    )
    if claim is not None:
        reservation.allot(config["seat"])
    try:
        PAUSING.obey(
            lambda left_s: reservation.allot(
                {}, leave_by=None if left_s is None else time.monotonic() + left_s, is_suspension=True
            )
        )
        import eagleray.training.trainer_ray260  # noqa: F401  3 s, while the workers start

        reservation.wait(lambda text: reporter.put("note", text=text))
        return fit(
            spec,
            run.url,
            first_attempt=next_attempt(run),
            reservation=reservation,
            observer=TrialObserver(reporter),
        )
    except Suspended:
        return None
    finally:
        reservation.release()


class TrialObserver:
    """Hears of a trial's Ray Train run (`training.observer`), and reports it."""

    def __init__(self, reporter: Reporter):
        self._reporter = reporter

    def changed(self, change: Change) -> None:
        """Tell of the attempt, and of what was lost before."""
        for rank, (_, reason) in sorted(change.lost.items()):
            self._reporter.put("note", text=f"lost rank {rank}: {reason}; the others go on")
        self._reporter.started(change.number, change.workers)

    def records(self, records: Sequence[Record]) -> None:
        """Take what rank 0 recorded."""
        for record in records:
            self._reporter.take(record)

    def failed(self, failures: Mapping[int, Exception], is_retried: bool) -> None:
        """Tell of workers that are started again; the rest comes out of `fit`."""
        if is_retried:
            ranks = ", ".join(str(rank) for rank in sorted(failures) if rank != START)
            reason = in_words(next(iter(failures.values())))
            lost = f"lost rank {ranks}: " if ranks else ""
            self._reporter.put("note", text=f"{lost}{reason}; starting the workers again")


def _this_worker() -> WorkerInfo:
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    return WorkerInfo(rank=0, node_id=node_id, pid=os.getpid(), node_ip=ray.util.get_node_ip_address())


def in_words(error: Exception) -> str:
    """One sentence: ours as it is, another's with its type."""
    lines = str(error).strip().splitlines() or ["no message"]
    return lines[0] if isinstance(error, EaglerayError) else f"{type(error).__name__}: {lines[0]}"


def details_of(error: Exception) -> list[str]:
    """The traceback of an error that is not ours (the user's code, a bug)."""
    if isinstance(error, EaglerayError):
        return []
    return "".join(traceback.format_exception(error)).splitlines()
