"""`TrackedRuns`: the runs that MLflow knows, newest first; for a wanted one the storage is asked too."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from eagleray.errors import ServiceError
from eagleray.packaging import Folder
from eagleray.registry.connection import asking, open_client

_RUN, _KIND = "eagleray.run", "eagleray.kind"
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,199}")
_STAMP = re.compile(r"-\d{8}-\d{6}-[0-9a-f]{4}")
_NUM_STORED = 20
_STATUS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped", "STOPPED": "stopped"}
_HELD_OUT = ("test_", "validation_", "")
"""Beginnings of metrics' names, the most telling first."""


@dataclass(frozen=True)
class RunRecord:
    """A run, in short."""

    id: str
    name: str
    """Of its spec."""
    kind: str
    """train, or trial (of a search)."""
    status: str
    """finished, failed, stopped or running, as its driver said last: one that was killed said no more."""
    started_at: float
    """Seconds since the epoch."""
    metric: str | None
    """Name of the one that says most: of held-out data, a quality rather than a loss."""
    value: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class TrackedRuns:
    """Runs by MLflow; what it does not know, because it was away then, by their folders in the storage."""

    def __init__(self, tracking_uri: str, storage_url: str) -> None:
        """It has done nothing yet; MLflow is imported by the first call."""
        self._uri = tracking_uri
        self._folder = Folder(storage_url).child("runs")

    def newest(self, limit: int, name: str | None = None) -> list[RunRecord]:
        """The newest runs; where `name` is given, the run of that id, or those of a spec of that name.

        Raises:
            ServiceError: MLflow or the storage does not answer.
        """
        if name is None:
            return self._search("!= ''", limit)
        if not _ID.fullmatch(name):
            return []
        return (
            self._search(f"= '{name}'", 1)
            or self._search("!= ''", limit, f" and params.name = '{name}'")
            or self._stored(name)[:limit]
        )

    @cached_property
    def _client(self) -> Any:
        return open_client(self._uri)

    def _search(self, wanted: str, limit: int, more: str = "") -> list[RunRecord]:
        with asking(self._uri):
            experiments = [found.experiment_id for found in self._client.search_experiments()]
            found = self._client.search_runs(
                experiments,
                f"tags.`{_RUN}` {wanted}{more}",
                max_results=limit,
                order_by=["attributes.start_time DESC"],
            )
        return [_of_mlflow(run) for run in found]

    def _stored(self, name: str) -> list[RunRecord]:
        try:
            ids = [
                found
                for found in self._folder.list()
                if found == name or (found.startswith(name) and _STAMP.fullmatch(found[len(name) :]))
            ]
            records = [self._of_storage(run_id) for run_id in sorted(ids, reverse=True)[:_NUM_STORED]]
        except OSError as error:
            raise ServiceError(
                f"runs in {self._folder.url} cannot be read: {error.strerror or error}"
            ) from error
        return [record for record in records if record is not None]

    def _of_storage(self, run_id: str) -> RunRecord | None:
        """None where the folder is not that of a run."""
        folder = self._folder.child(run_id)
        try:
            if not folder.exists("spec.json"):
                return None
            name = str(folder.read_json("spec.json")["name"])
            report = folder.read_json("report.json") if folder.exists("report.json") else {}
            return RunRecord(
                run_id,
                name,
                "train" if report.get("search") is None else "trial",
                _STATUS.get(str(report.get("status")), "running"),
                float(report.get("started_at") or folder.modified_at("spec.json")),
                *main_metric(report.get("metrics") or {}),
            )
        except (ValueError, KeyError, TypeError, AttributeError):  # what it holds is not JSON of ours
            return None


def main_metric(metrics: Mapping[str, float]) -> tuple[str, float] | tuple[None, None]:
    """Name and value of the metric that says most of a run."""
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    for beginning in _HELD_OUT:
        for is_loss in (False, True) if beginning else (True,):
            for name in sorted(finite):
                if name.startswith(beginning) and name.endswith("loss") is is_loss:
                    return name, finite[name]
    return None, None


def _of_mlflow(run: Any) -> RunRecord:
    tags, params = run.data.tags, run.data.params
    return RunRecord(
        tags[_RUN],
        params.get("name", tags[_RUN]),
        tags.get(_KIND, "train"),
        _STATUS.get(run.info.status, "running"),
        run.info.start_time / 1000,
        *main_metric(run.data.metrics),
    )
