"""A run in MLflow, written by the job's driver through one background thread.

No call but `finish` and `run_id` waits: MLflow takes 2 s to import and 2.5 s to make a new SQLite file, and a
server that is away must not stop a run. What could not be written is kept for the next try, and at the end
put aside.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eagleray.registry.connection import connect, first_line, one_at_a_time

_log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

# MLflow's own limits (mlflow/utils/validation.py, 3.17), which servers enforce.
_MAX_KEY, _MAX_PARAM, _MAX_TAG = 250, 6000, 8000
_RUN_ID_TIMEOUT_S = 60.0
_MAX_METRICS, _MAX_PARAMS = 1000, 100


@dataclass(frozen=True)
class _Point:
    name: str
    value: float
    step: int
    time_ms: int


@dataclass(frozen=True)
class _Tag:
    name: str
    value: str


@dataclass(frozen=True)
class _Artifact:
    path: Path
    folder: str


@dataclass
class _Start:
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    run_id: str | None
    is_tried: threading.Event = field(default_factory=threading.Event)


class Tracker:
    """Writes one run to MLflow. Not for ranks: the driver has the only one of a run."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        artifact_root: str | None = None,
        spill: Path | None = None,
        warn: Callable[[str], None] = _log.warning,
        flush_s: float = 1.0,
        retry_s: float = 30.0,
    ) -> None:
        """A tracker that has done nothing yet.

        Args:
            uri: MLflow's tracking URI: `sqlite:///<file>` or a server's address.
            experiment: Made where it does not exist.
            artifact_root: Folder or URL for the artifacts of an experiment that is made in SQLite; a server
                has its own.
            spill: File that takes, as JSON lines, the metrics which could not be written.
            warn: Told once when MLflow cannot be reached.
            flush_s: Metrics wait so long to be written together.
            retry_s: Pause after a failure.
        """
        self._uri, self._experiment, self._artifact_root = uri, experiment, artifact_root
        self._spill, self._warn = spill, warn
        self._flush_s, self._retry_s = flush_s, retry_s
        self._queue: queue.SimpleQueue[_Point | _Tag | _Artifact | Status] = queue.SimpleQueue()
        self._start: _Start | None = None
        self._thread: threading.Thread | None = None
        self._client: Any = None
        self._run_id: str | None = None
        self._points: list[_Point] = []
        self._tags: list[_Tag] = []
        self._artifacts: list[_Artifact] = []
        self._last_error: str | None = None
        self._next_try = 0.0
        self._troubles: list[str] = []

    @property
    def run_id(self) -> str | None:
        """MLflow's run id; waits up to a minute for the first try to make the run, None if that failed."""
        if self._start is not None:
            self._start.is_tried.wait(_RUN_ID_TIMEOUT_S)
        return self._run_id

    @property
    def known_run_id(self) -> str | None:
        """MLflow's run id, None as long as it is not known; waits for nothing."""
        return self._run_id

    def start(
        self, name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None = None
    ) -> None:
        """Begin to make the run, in the background; `run_id` has its id.

        Args:
            name: The run's name.
            params: May be nested; becomes dotted names, values as text cut to MLflow's limits.
            tags: Plain text by name.
            run_id: An MLflow run to go on with; where MLflow no longer has it, a new one is made.
        """
        assert self._thread is None, "start is called once"
        cut = {key[:_MAX_KEY]: value[:_MAX_PARAM] for key, value in flat(params).items()}
        short = {key[:_MAX_KEY]: str(value)[:_MAX_TAG] for key, value in tags.items()}
        self._start = _Start(name, cut, short, run_id)
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue metrics of a step; returns at once."""
        now_ms = int(time.time() * 1000)
        for name, value in metrics.items():
            self._queue.put(_Point(name[:_MAX_KEY], float(value), step, now_ms))

    def tag(self, name: str, value: str) -> None:
        """Queue a tag; one of the same name is replaced. Returns at once."""
        self._queue.put(_Tag(name[:_MAX_KEY], value[:_MAX_TAG]))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Queue a file, which must stay until `finish` has returned; returns at once."""
        self._queue.put(_Artifact(path, folder))

    def finish(self, status: Status, *, timeout_s: float = 60.0) -> list[str]:
        """Write what is left and end the run in MLflow.

        Returns:
            What could not be written, in words; empty where all of it was.
        """
        if self._thread is None:
            return []
        self._queue.put(status)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return [f"{self._uri} did not answer for {timeout_s:.0f} s; the rest of the run is not there"]
        return self._troubles

    def _work(self) -> None:
        """The thread: start, then write what arrives, together, until the status comes."""
        self._try(time.monotonic())
        status: Status | None = None
        while status is None:
            status = self._collect()
            if status is None and time.monotonic() >= self._next_try:
                self._try(time.monotonic())
        self._try(time.monotonic())
        self._end(status)

    def _collect(self) -> Status | None:
        """Take from the queue for `flush_s`; returns the status where it came."""
        until = time.monotonic() + self._flush_s
        while (left_s := until - time.monotonic()) > 0:
            try:
                item = self._queue.get(timeout=left_s)
            except queue.Empty:
                return None
            if isinstance(item, str):
                return item
            if isinstance(item, _Artifact):
                self._artifacts.append(item)
            elif isinstance(item, _Tag):
                self._tags.append(item)
            else:
                self._points.append(item)
        return None

    def _try(self, now: float) -> None:
        """Write all that waits; after a failure the rest waits for the next try."""
        assert self._start is not None
        try:
            if self._run_id is None:
                self._open(self._start)
            self._write()
            self._last_error = None
        except Exception as error:  # whatever a store or server raises, a run goes on without its record
            if self._last_error is None:
                self._warn(
                    f"MLflow at {self._uri} does not take the run's record ({first_line(error)}); "
                    f"the run goes on, and tries again every {self._retry_s:.0f} s"
                )
            self._last_error = first_line(error)
            self._next_try = now + self._retry_s
        finally:
            self._start.is_tried.set()

    def _open(self, start: _Start) -> None:
        """Make the run, or go on with the earlier one."""
        with one_at_a_time(self._uri):
            self._client = connect(self._uri)
            experiment_id = _experiment_id(self._client, self._experiment, self._root())
        run_id = _reopened(self._client, start.run_id) if start.run_id else None
        if run_id is None:
            run_id = self._client.create_run(experiment_id, run_name=start.name).info.run_id
        self._run_id = run_id
        try:
            _describe(self._client, run_id, start)
        except Exception as error:  # refused params are no reason to lose the metrics
            self._troubles.append(f"params or tags: {first_line(error)}")

    def _root(self) -> str | None:
        return self._artifact_root if self._uri.startswith("sqlite:") else None

    def _write(self) -> None:
        from mlflow.entities import Metric

        while self._points:
            batch = self._points[:_MAX_METRICS]
            metrics = [Metric(point.name, point.value, point.time_ms, point.step) for point in batch]
            self._client.log_batch(self._run_id, metrics=metrics)
            del self._points[: len(batch)]
        while self._tags:
            self._client.set_tag(self._run_id, self._tags[0].name, self._tags[0].value)
            del self._tags[0]
        while self._artifacts:
            artifact = self._artifacts[0]
            if artifact.path.exists():
                self._client.log_artifact(self._run_id, str(artifact.path), artifact.folder or None)
            else:
                self._troubles.append(f"artifact {artifact.path.name}: the file is gone")
            del self._artifacts[0]

    def _end(self, status: Status) -> None:
        """Set the run's status, and put aside what could not be written."""
        if self._run_id is not None:
            try:
                self._client.set_terminated(self._run_id, status)
            except Exception as error:
                self._troubles.append(f"the status {status}: {first_line(error)}")
        if self._last_error is not None:
            self._troubles.insert(0, f"{self._uri}: {self._last_error}")
        if self._points:
            kept = ""
            if self._spill is not None:
                run = {"run_id": self._run_id}
                lines = (json.dumps(vars(point) | run) + "\n" for point in self._points)
                self._spill.write_text("".join(lines))
                kept = f", kept in {self._spill}"
            self._troubles.append(f"{len(self._points)} metric values{kept}")
        self._troubles += [f"tag {tag.name}" for tag in self._tags]
        self._troubles += [f"artifact {artifact.path.name}" for artifact in self._artifacts]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`tree` with dotted names and values as text: nested dicts opened, all else as JSON says it."""
    names: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            names |= flat(value, f"{prefix}{key}.")
        else:
            names[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return names


def _experiment_id(client: Any, name: str, artifact_root: str | None) -> str:
    """The experiment's id; it is made where it is missing. Another process may make it in between."""
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    try:
        return client.create_experiment(name, artifact_location=artifact_root)
    except MlflowException:
        if found := client.get_experiment_by_name(name):
            return found.experiment_id
        raise


def _reopened(client: Any, run_id: str) -> str | None:
    """`run_id`, set to running again; None where MLflow no longer has it."""
    from mlflow.exceptions import MlflowException

    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run_id


def _describe(client: Any, run_id: str, start: _Start) -> None:
    """Write params and tags. MLflow never changes a param: what a resume changed goes into a tag."""
    from mlflow.entities import Param, RunTag

    known = client.get_run(run_id).data.params if start.run_id else {}
    changed = {name: value for name, value in start.params.items() if known.get(name, value) != value}
    tags = dict(start.tags) | {f"changed.{name}"[:_MAX_KEY]: value for name, value in changed.items()}
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    params = [Param(name, value) for name, value in start.params.items() if name not in known]
    for begin in range(0, len(params), _MAX_PARAMS):
        client.log_batch(run_id, params=params[begin : begin + _MAX_PARAMS])
