"""`SearchMonitor`: tells people, MLflow and the folders of a search and its trials what happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from eagleray.packaging import Folder
from eagleray.registry.tracking import Status, Tracker
from eagleray.specs import TrainSpec, TuneSpec
from eagleray.training.observer import Change, WorkerInfo
from eagleray.training.telemetry import Record
from eagleray.tuning import Trial
from eagleray.tuning.search import describe
from eagleray.workflows.monitor import Segments
from eagleray.workflows.queueing import Queue
from eagleray.workflows.report import Account
from eagleray.workflows.run import Run, keep_earlier_report, runs
from eagleray.workflows.search_table import live
from eagleray.workflows.words import count

TABLE_EVERY_S = 2.0
_STATUS: Mapping[str, Status] = {"finished": "FINISHED", "stopped": "KILLED", "interrupted": "KILLED"}
_REPORT_STATUS = {"finished": "FINISHED", "stopped": "STOPPED", "interrupted": "STOPPED", "failed": "FAILED"}


@dataclass
class _Live:
    """A trial that was started by this driver."""

    run: Run
    started_at: float
    account: Account = field(default_factory=Account)
    tracker: Tracker | None = None
    logged: int = 0
    """Rows of the account's history that MLflow has."""
    is_mlflow_noted: bool = False


class SearchMonitor:
    """An observer (`tuning.running`) of one search, in its driver."""

    def __init__(
        self,
        search_id: str,
        spec: TuneSpec,
        folder: Folder,
        trials: list[Trial],
        *,
        parent: Tracker,
        make_tracker: Callable[[Folder], Tracker],
        say: Callable[[str], None],
        node_name: Callable[[str], str],
        queue: Queue | None = None,
    ):
        self._queue = queue
        self._search_id, self._spec, self._folder, self._trials = search_id, spec, folder, trials
        self.parent, self._make_tracker = parent, make_tracker
        self._say, self._node_name = say, node_name
        self._live: dict[int, _Live] = {}
        self._started_at = time.monotonic()
        self._said: list[str] = []
        self._said_at = 0.0
        self._is_parent_noted = False
        self._explained: set[str | None] = set()
        self._finishing = ThreadPoolExecutor(4, thread_name_prefix="mlflow-end")
        self._troubles: list[Any] = []
        self._late: list[Trial] = []
        """Ended before MLflow had the search."""

    def created(self, number: int, values: dict[str, Any]) -> Trial:
        """A record of it, in the search's folder before anything happens."""
        trial = Trial(number, values, run_id=f"{self._search_id}-{number:03d}")
        self._keep(trial)
        return trial

    def prepared(self, trial: Trial, spec: TrainSpec) -> str:
        """Make its run, or take up the one that an earlier driver has made."""
        if trial.number in self._live:  # it has paused
            return self._live[trial.number].run.folder.url
        folder = runs().child(trial.run_id)
        if folder.exists("spec.json"):
            run = Run(trial.run_id, spec, folder)
            keep_earlier_report(run)
        else:
            run = Run.create(spec, trial.run_id)
        self._live[trial.number] = _Live(run, time.time())
        return folder.url

    def started(self, trial: Trial, attempt: int, workers: Sequence[WorkerInfo]) -> None:
        """Note where it runs; from here on MLflow has it."""
        now, found = time.time(), self._live[trial.number]
        if not found.account.num_attempts:
            marks = dict.fromkeys(("submitted_at", "submitted", "driver", "nodes"), now)
            found.account.marks |= marks
            found.started_at = now
        found.account.changed(Change(attempt, workers, 0, {}, now))
        trial.nodes = sorted({self._node_name(worker.node_id) for worker in workers})
        self._keep(trial)

    def records(self, trial: Trial, records: Sequence[Record]) -> None:
        """Count them; say what a user should read."""
        found = self._live[trial.number]
        for record in records:
            found.account.take(record)
            if record["kind"] == "note" and len(trial.nodes) > 1:
                self._say(f"trial {trial.number}: {record['text']}")
        self._track(trial, found)

    def recovered(self, trial: Trial) -> None:
        """Say so; it goes on from its newest checkpoint."""
        self._live[trial.number].account.lost([0], "its process ended", time.time())
        self._say(f"trial {trial.number}: lost its process at step {trial.step}; it is started again")
        self._keep(trial)

    def paused(self, trial: Trial, saved_step: int, reason: str) -> None:
        """Say so, and what is to be done again, if anything is."""
        again = "" if trial.step <= saved_step else f"; goes on from step {saved_step}, the newest saved"
        why = f": {reason}" if reason else ""
        self._say(f"trial {trial.number}: paused at step {trial.step}{why}{again}")
        trial.nodes = []
        self._keep(trial)

    def ended(self, trial: Trial, outcome: Mapping[str, Any], details: Sequence[str]) -> None:
        """Write the report of its run, and end its record in MLflow."""
        self._keep(trial)
        if trial.error not in self._explained:  # the same bug in each trial has one traceback
            self._explained.add(trial.error)
            for line in details:
                self._say(f"trial {trial.number}: {line}")
        if trial.state == "failed":
            self._say(f"trial {trial.number} failed ({describe(trial.values)}): {trial.error}")
        found = self._live.get(trial.number)
        if found is None:  # its values do not go together: it never was a run
            return
        tests = {f"test_{name}": value for name, value in outcome.get("test", {}).items()}
        found.account.latest |= tests
        found.account.ended(time.time())
        report = {
            "run_id": trial.run_id,
            "status": _REPORT_STATUS[trial.state],
            "started_at": found.started_at,
            "search": self._search_id,
            "trial": trial.number,
            "values": trial.values,
            **{name: value for name, value in outcome.items() if name != "evaluations"},
            "seconds": trial.seconds,
            **found.account.to_json(),
        }
        if trial.error or trial.why_stopped:
            report["error"] = trial.error or f"ended early: {trial.why_stopped}"
        found.run.folder.write_json("report.json", report)
        Segments(found.run.folder).add(found.account.history, is_last=True)
        self._track(trial, found)
        self._end(trial, found)

    def tick(self, *, is_waiting: bool) -> None:
        """Print the table when it is due and says something new, and why nothing runs; note MLflow's ids."""
        if self._queue is not None:
            self._queue.look(is_waiting=is_waiting)
        self._note_parent()
        self._catch_up()
        if time.monotonic() - self._said_at < TABLE_EVERY_S or not self._trials:
            return
        for trial in self._trials:
            found = self._live.get(trial.number)
            if found is not None and trial.state == "running":
                self._track(trial, found)
        lines = live(self._spec, self._trials, time.monotonic() - self._started_at)
        if lines[1:] != self._said:
            self._said, self._said_at = lines[1:], time.monotonic()
            self._say("\n".join(lines))

    def close(self) -> list[str]:
        """Wait until MLflow has the trials; returns what it does not have, in words."""
        if self._late and self.parent.run_id is None:  # waits for MLflow's first answer
            return [f"{count(len(self._late), 'trial')} of {len(self._trials)}"]
        self._note_parent()
        self._catch_up()
        self._finishing.shutdown(wait=True)
        return [trouble for future in self._troubles for trouble in future.result()]

    def row(self, trial: Trial) -> dict[str, Any]:
        """The trial's row of trials.parquet."""
        found = self._live.get(trial.number)
        latest = found.account.latest if found is not None else {}
        measured = dict(trial.evaluations[-1]) if trial.evaluations else {}
        measured |= {name: value for name, value in latest.items() if name.startswith("test_")}
        measured.pop("step", None)
        return {
            "trial": trial.number,
            "run_id": trial.run_id,
            "state": trial.state,
            **trial.values,
            "step": trial.step,
            "evaluations": len(trial.evaluations),
            **measured,
            "node": ",".join(trial.nodes),
            "seconds": trial.seconds,
            "error": trial.error,
            "why_stopped": trial.why_stopped,
        }

    def _keep(self, trial: Trial) -> None:
        """The trial's record in the search's folder; its evaluations are in the run's."""
        fields = {name: value for name, value in trial.to_json().items() if name != "evaluations"}
        self._folder.write_json(f"trials/{trial.number:06d}.json", fields)

    def _track(self, trial: Trial, found: _Live) -> None:
        """Give MLflow what is new. A trial's record begins once MLflow has the search's."""
        if found.tracker is None:
            parent = self.parent.known_run_id
            if parent is None:
                return
            folder = found.run.folder
            found.tracker = self._make_tracker(folder)
            earlier = folder.read_json("mlflow.json")["run_id"] if folder.exists("mlflow.json") else None
            found.tracker.start(
                trial.run_id,
                params=found.run.spec.model_dump(mode="json"),
                tags={
                    "mlflow.parentRunId": parent,
                    "eagleray.run": trial.run_id,
                    "eagleray.kind": "trial",
                    "eagleray.search": self._search_id,
                    **{f"eagleray.space.{path}": str(value) for path, value in trial.values.items()},
                },
                run_id=earlier,
            )
        for row in found.account.history[found.logged :]:
            values = {name: value for name, value in row.items() if name != "step"}
            found.tracker.log(values, int(row["step"]))
        found.logged = len(found.account.history)
        if not found.is_mlflow_noted and found.tracker.known_run_id is not None:
            found.run.folder.write_json("mlflow.json", {"run_id": found.tracker.known_run_id})
            found.is_mlflow_noted = True

    def _end(self, trial: Trial, found: _Live) -> None:
        """End its record in MLflow, in a thread: that waits for what is still to be written."""
        tracker, status = found.tracker, _STATUS.get(trial.state, "FAILED")
        if tracker is None:
            self._late.append(trial)
            return
        tests = {name: value for name, value in found.account.latest.items() if name.startswith("test_")}
        tracker.log(tests, trial.step)

        def finish() -> list[str]:
            troubles = tracker.finish(status)
            return [f"trial {trial.number}: {trouble}" for trouble in troubles]

        self._troubles.append(self._finishing.submit(finish))

    def _catch_up(self) -> None:
        """Give MLflow the trials that ended before it had the search."""
        if self._late and self.parent.known_run_id is not None:
            late, self._late = self._late, []
            for trial in late:
                self._track(trial, self._live[trial.number])
                self._end(trial, self._live[trial.number])

    def _note_parent(self) -> None:
        run_id = self.parent.known_run_id
        if run_id is not None and not self._is_parent_noted:
            self._folder.write_json("mlflow.json", {"run_id": run_id})
            self._is_parent_noted = True
