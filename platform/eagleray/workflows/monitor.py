"""`RunMonitor`: tells people, MLflow, Prometheus and the run's folder what a run does."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eagleray.errors import EaglerayError, PeerLost
from eagleray.metrics import Emitter
from eagleray.packaging import Folder
from eagleray.registry.tracking import Tracker
from eagleray.training.observer import START, Change, WorkerInfo
from eagleray.training.telemetry import Record
from eagleray.workflows.buckets import by_bucket
from eagleray.workflows.report import Account, Recovery, sent
from eagleray.workflows.words import clock, count

LINE_EVERY_S = 1.0
_COUNTED = (
    *("sent_bytes", "payload_bytes", "uncompressed_bytes", "probe_bytes"),
    *("codec_seconds", "exchange_seconds"),
)
SEGMENT_EVERY_S = 10.0


class RunMonitor:
    """An observer (`training.observer`) of one run, in its driver."""

    def __init__(
        self,
        run_id: str,
        folder: Folder,
        account: Account,
        *,
        tracker: Tracker,
        emitter: Emitter,
        say: Callable[[str], None],
        node_name: Callable[[str], str],
    ):
        self.account = account
        self._labels = {"run": run_id}
        self._folder, self.tracker, self._emitter = folder, tracker, emitter
        self._say, self._node_name = say, node_name
        self._workers: dict[int, WorkerInfo] = {}
        self._said_at = self._step_s = 0.0
        self._is_mlflow_noted = False
        self._is_trouble_said = False
        self._segments = Segments(folder)

    def changed(self, change: Change) -> None:
        """Say who was lost and who trains now."""
        if change.lost:
            self._say_loss(change)
        self.account.changed(change, self._node_name)
        self._workers = {worker.rank: worker for worker in change.workers}
        nodes = {worker.node_id for worker in change.workers}
        before = f"{change.num_before} -> " if change.num_before else ""
        size = f"{before}{count(len(change.workers), 'worker')} on {count(len(nodes), 'node')}"
        self._say(f"attempt {change.number}: {size}")
        for worker in change.workers:
            self._say(f"  rank {worker.rank}: node {self._node_name(worker.node_id)}, pid {worker.pid}")
        self._emitter.set("eagleray_train_workers", len(change.workers), self._labels)
        self._emitter.set("eagleray_train_nodes", len(nodes), self._labels)

    def _say_loss(self, change: Change) -> None:
        """Ranks were lost, and the others go on."""
        who = ", ".join(self._describe(rank) for rank in sorted(change.lost))
        reason = "; ".join(dict.fromkeys(reason for _, reason in change.lost.values()))
        num_left = change.num_before - len(change.lost)
        self.account.lost(sorted(change.lost), reason, change.left_at, num_left=num_left)
        self._emitter.add("eagleray_train_recoveries_total", 1, self._labels)
        self._say(f"lost {who}: {reason}; the others go on with what they hold")

    def failed(self, failures: Mapping[int, Exception], is_retried: bool) -> None:
        """Say what was lost; whether the run goes on is the caller's decision."""
        dead = [rank for rank, failure in failures.items() if is_death(failure)] or root_ranks(failures)
        who = ", ".join(self._describe(rank) for rank in sorted(dead))
        reason = reason_of(failures[dead[0]])
        for line in traceback_of(failures[dead[0]]):
            self._say(line)
        if not is_retried:
            self._say(f"{who} failed after step {self.account.step}: {reason}")
            return
        if dead == [START]:
            self._say(f"{reason}; starting the workers again")  # no rank trained: nothing of the run is lost
            return
        self.account.lost(dead, reason, time.time())
        self._emitter.add("eagleray_train_recoveries_total", 1, self._labels)
        self._say(f"lost {who}: {reason}; starting the workers again")

    def records(self, records: Sequence[Record]) -> None:
        """Count, print, track and export what rank 0 recorded."""
        for record in records:
            was_pending = self.account.pending
            if record["kind"] == "phase" and record["step"] and not self.account.step:
                self.account.time.reached = self._last_step()
            self.account.take(record)
            self._track(record)
            if record["kind"] == "phase":
                self._say_where_it_goes_on(record, was_pending)
            if was_pending is not None and was_pending.first_step_at is not None:
                self._recovered(was_pending.pause_s or 0.0, was_pending.redone_steps or 0)
        self._export_goodput()
        self._keep(lambda: self._segments.add(self.account.history))
        self._keep(self._remember_mlflow)

    def _last_step(self) -> int:
        """The last one of earlier drivers, as far as their history can be read: only `redo` goes by it."""
        try:
            return last_step(self._folder)
        except (OSError, ValueError) as error:  # the storage is away, or a segment is torn
            self._say(
                f"the history in {self._folder.url} cannot be read, steps to redo count as new: {error}"
            )
            return 0

    def _keep(self, write: Callable[[], object]) -> None:
        """Write to the run's folder; storage trouble is said once, and does not end the run."""
        try:
            write()
        except OSError as error:
            if not self._is_trouble_said:
                self._say(
                    f"the run's folder {self._folder.url} cannot be written: {error.strerror or error}; "
                    "training goes on, and the history is written when that works again"
                )
            self._is_trouble_said = True

    def _export_goodput(self) -> None:
        found = self.account.goodput()
        self._emitter.set("eagleray_goodput_ratio", found.ratio, self._labels)
        for cause, seconds in found.lost_s.items():
            self._emitter.set("eagleray_lost_seconds", seconds, {**self._labels, "cause": cause})

    def _say_where_it_goes_on(self, record: Record, lost: Recovery | None) -> None:
        """The step that an attempt goes on from, if it does."""
        if lost is not None and lost.resumed_step is None:
            return  # the attempt that was lost tells late of its own start
        if lost is not None or record["step"]:
            loss = "" if lost is None else f"; the last step before the loss was {lost.lost_step}"
            self._say(f"going on from step {record['step']}{loss}")

    def _recovered(self, pause_s: float, redone_steps: int) -> None:
        self._emitter.add("eagleray_train_redone_steps_total", redone_steps, self._labels)
        self._say(f"training again after {pause_s:.1f} s; {count(redone_steps, 'step')} to redo")

    def _track(self, record: Record) -> None:
        kind = record["kind"]
        if kind == "note":
            self._say(record["text"])
        elif kind == "step":
            self._export_step(record)
            if record["time"] - self._said_at >= LINE_EVERY_S or record["step"] == record["total_steps"]:
                self._said_at = record["time"]
                self._say(self._step_line(record))
        elif kind == "evaluation":
            values = {key: value for key, value in record.items() if key.startswith("validation_")}
            self.tracker.log(values, record["step"])
            for name, value in values.items():
                self._emitter.set(f"eagleray_train_{name}", value, self._labels)
        elif kind == "compression":
            self._say(record["reason"])
            self.tracker.tag("eagleray.compression", record["compressor"])
            self.tracker.tag("eagleray.compression.reason", record["reason"])
        elif kind == "buckets":
            self._export_buckets(record)
        elif kind == "lost":
            self._emitter.add("eagleray_train_lost_residuals_total", record["num_ranks"], self._labels)
        elif kind == "commit":
            self._emitter.set("eagleray_train_checkpoint_seconds", record["seconds"], self._labels)
            state_bytes = record.get("state_bytes", 0)
            self._emitter.add("eagleray_train_state_bytes_total", state_bytes, self._labels)
            self.tracker.log({"state_mb": self.account.state_bytes / 1e6}, record["step"])

    def _export_step(self, record: Record) -> None:
        step_s = self._step_s = record["seconds"] / record["num_steps"]
        loss = {"loss": record["loss"]} if "loss" in record else {}
        values = {
            **loss,
            "learning_rate": record["learning_rate"],
            "samples_per_second": record["num_samples"] / record["seconds"],
            **self._compression(record),
        }
        totals = {
            "compression_ratio": self.account.compression_ratio,
            "sent_mb": self.account.sent_bytes / 1e6,
            "payload_mb": self.account.payload_bytes / 1e6,
            "probe_mb": self.account.probe_bytes / 1e6,
            "codec_seconds": self.account.codec_seconds,
            "exchange_seconds": self.account.exchange_seconds,
            "skipped_steps": self.account.skipped_steps,
            "goodput": self.account.goodput().ratio,
        }
        self.tracker.log({**values, **totals}, record["step"])
        for name, value in {**values, "step_seconds": step_s}.items():
            self._emitter.set(f"eagleray_train_{name}", value, self._labels)
        counters = {
            "steps": record["num_steps"],
            "skipped_steps": record.get("skipped_steps", 0),
            "samples": record["num_samples"],
            **{name: record.get(name, 0) for name in _COUNTED},
        }
        for name, value in counters.items():
            self._emitter.add(f"eagleray_train_{name}_total", value, self._labels)

    def _export_buckets(self, record: Record) -> None:
        for bucket, values in by_bucket(record["buckets"], self._step_s).items():
            labels = {**self._labels, "bucket": bucket}
            for name, value in values.items():
                self._emitter.set(f"eagleray_train_bucket_{name}", value, labels)
            self.tracker.log({f"bucket_{bucket}_{k}": v for k, v in values.items()}, record["step"])

    def _compression(self, record: Record) -> dict[str, float]:
        """How the gradients went, as numbers of one time."""
        if not record["sent_bytes"]:
            return {}
        return {
            "relative_error": record.get("relative_error", 0.0),
            "link_bytes_per_second": record["sent_bytes"] / max(1, len(self._workers)) / record["seconds"],
        }

    def _step_line(self, record: Record) -> str:
        """One line of progress, for a log or a terminal."""
        step, total = record["step"], record["total_steps"]
        seconds_per_step = record["seconds"] / record["num_steps"]
        nodes = len({worker.node_id for worker in self._workers.values()})
        parts = [
            f"step {step}/{total} ({100 * step // total} %)",
            f"epoch {record['epoch'] + 1}",
            f"loss {record['loss']:.4f}" if "loss" in record else "no step taken",
        ]
        if "validation_accuracy" in self.account.latest:
            parts.append(f"validation accuracy {self.account.latest['validation_accuracy']:.2%}")
        parts += [
            f"{record['num_samples'] / record['seconds']:,.0f} samples/s",
            f"ETA {clock((total - step) * seconds_per_step)}",
            f"{count(len(self._workers), 'worker')} on {count(nodes, 'node')}",
        ]
        if self.account.sent_bytes:
            parts.append(sent(self.account.sent_bytes, self.account.uncompressed_bytes))
        return "  ".join(parts)

    def _describe(self, rank: int) -> str:
        worker = self._workers.get(rank)
        if worker is None:
            return "the run" if rank == START else f"rank {rank}"
        return f"rank {rank} (node {self._node_name(worker.node_id)}, pid {worker.pid})"

    def _remember_mlflow(self) -> None:
        """Note MLflow's id of the run as soon as it is known, so that a resumed run goes on with it."""
        run_id = self.tracker.known_run_id
        if run_id is not None and not self._is_mlflow_noted:
            self._folder.write_json("mlflow.json", {"run_id": run_id})
            self._is_mlflow_noted = True

    def close(self) -> None:
        """Write the rest of the history."""
        self._segments.add(self.account.history, is_last=True)
        self._remember_mlflow()


class Segments:
    """The history of metrics as numbered immutable Parquet files: a killed driver loses seconds of it."""

    def __init__(self, folder: Folder):
        self._folder = folder.child("history")
        self._number = len(segment_names(folder))
        self._written, self._written_at = 0, time.monotonic()

    def add(self, history: Sequence[Mapping[str, float]], *, is_last: bool = False) -> None:
        """Write what is new, if the last segment is old enough; what fails is for the next one."""
        rows = history[self._written :]
        if not rows or (not is_last and time.monotonic() - self._written_at < SEGMENT_EVERY_S):
            return
        self._written_at = time.monotonic()
        self._folder.write_bytes(f"{self._number + 1:06d}.parquet", to_parquet(rows))
        self._number, self._written = self._number + 1, len(history)


def to_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as one Parquet file; a metric that a row has not is null there."""
    import pandas as pd

    buffer = io.BytesIO()
    pd.DataFrame(list(rows)).to_parquet(buffer, index=False)
    return buffer.getvalue()


def segment_names(run: Folder) -> list[str]:
    """The run's segments; not what a killed driver left half written."""
    return [name for name in run.child("history").list() if not name.startswith(".")]


def read_history(folder: Folder, names: Sequence[str] | None = None) -> list[dict[str, float]]:
    """All rows of a run's history segments, in their order; of those of that name, where given."""
    import pandas as pd

    segments = folder.child("history")
    names = segment_names(folder) if names is None else names
    frames = [pd.read_parquet(io.BytesIO(segments.read_bytes(name))) for name in names]
    if not frames:
        return []
    rows = pd.concat(frames).to_dict(orient="records")
    return [{str(key): value for key, value in row.items() if not pd.isna(value)} for row in rows]


def last_step(run: Folder) -> int:
    """The last step that the run's history tells of; 0 where it tells of none."""
    names = segment_names(run)
    return max((int(row["step"]) for row in read_history(run, names[-1:])), default=0)


def root_ranks(failures: Mapping[int, Exception]) -> list[int]:
    """The ranks that failed by themselves, not because another did; all where none did."""
    return [rank for rank, failure in failures.items() if not isinstance(failure, PeerLost)] or list(failures)


def is_death(failure: Exception) -> bool:
    """Whether the worker's process is gone (and not just its train function)."""
    from ray.exceptions import RayActorError

    return isinstance(failure, RayActorError)


def reason_of(failure: Exception) -> str:
    """One line of why."""
    if is_death(failure):
        return "its process ended"
    lines = str(failure).strip().splitlines()
    name = "" if isinstance(failure, EaglerayError) else f"{type(failure).__name__}: "
    return name + (lines[0] if lines else "no message")


def traceback_of(failure: Exception) -> list[str]:
    """The lines of the traceback of an error that is not ours (the user's code, a bug)."""
    if isinstance(failure, EaglerayError) or is_death(failure):
        return []
    return [line for note in getattr(failure, "__notes__", []) for line in note.splitlines()]
