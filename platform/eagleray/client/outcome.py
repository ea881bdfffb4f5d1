"""A job, and what it came to: how it ended, what it printed, its report where that can be reached."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FILES = re.compile(r"(?:files in (\S.*?)|^report (\S.*?)/report\.html)\s*$", re.MULTILINE)
"""The last line of a run, a search or an evaluation names its folder."""
_MADE = re.compile(r"^(?:run|search|evaluation) ([a-z0-9][a-z0-9._-]*)(?::.*)?$", re.MULTILINE)
"""The first line has the id of what the job is about to make."""
_PUBLISHED = re.compile(r"^published (\S+/versions/\d+)", re.MULTILINE)

_FINISHED = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})


@dataclass(frozen=True)
class Job:
    """One submission, as the cluster describes it now."""

    id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    entrypoint: str
    message: str = ""
    driver_exit_code: int | None = None
    """Of the driver's process; None while it runs, or where it never started."""
    started_s: float | None = None
    """Seconds since the epoch."""
    ended_s: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in _FINISHED

    @property
    def exit_code(self) -> int:
        """For a shell: 0 done, 1 failed, 2 input wrong, 3 no capacity; 130 where it was stopped."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return 130
        return self.driver_exit_code if self.driver_exit_code and self.driver_exit_code > 0 else 1


@dataclass(frozen=True)
class JobResult:
    """A finished job."""

    job: Job
    log: str
    """All that its driver printed."""

    @property
    def exit_code(self) -> int:
        """0 done, 1 failed, 2 input wrong, 3 no capacity; 130 where it was stopped."""
        return self.job.exit_code

    @property
    def is_success(self) -> bool:
        """Whether it did what it was asked."""
        return self.exit_code == 0

    @property
    def folder(self) -> str | None:
        """Where its files are, a path or a URL; None where its log names none."""
        found = _FILES.findall(self.log)
        return found[-1][0] or found[-1][1] if found else None

    @property
    def made(self) -> str | None:
        """The id of the run, the search or the evaluation; None where the log names none."""
        found = _MADE.search(self.log)
        return found[1] if found else None

    @property
    def version(self) -> str | None:
        """What was published, as "digits/versions/3"; None where nothing was."""
        found = _PUBLISHED.search(self.log)
        return found[1] if found else None

    @property
    def report(self) -> Mapping[str, Any] | None:
        """Its report.json; None where its folder is not on a disk that this machine has."""
        if self.folder is None:
            return None
        try:
            found = json.loads(Path(self.folder.removeprefix("file://"), "report.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def job_of(entry: Mapping[str, Any]) -> Job:
    """From Ray's JSON."""
    return Job(
        id=str(entry.get("submission_id") or entry.get("job_id")),
        status=str(entry["status"]),
        entrypoint=str(entry.get("entrypoint", "")),
        message=str(entry.get("message") or ""),
        driver_exit_code=entry.get("driver_exit_code"),
        started_s=_seconds(entry.get("start_time")),
        ended_s=_seconds(entry.get("end_time")),
        metadata=dict(entry.get("metadata") or {}),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if not milliseconds else milliseconds / 1000
