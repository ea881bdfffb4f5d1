"""The sample journal of a run: one immutable file per commit, with what each of its steps consumed.

    <run>/journal/segment-00000150.attempt-0002.json
        attempt, step      the commit that the segment belongs to
        parent             (attempt, step) of the checkpoint that this stretch of steps started from
        entries            one list per step since then (`data.digests.Entry`)
        schema_version, sha256

A segment is written before its checkpoint's COMMIT, so every checkpoint has one. Checkpoints are pruned and
segments are not: from any checkpoint the parents lead back to step 0. Segments that no parent leads to are
of commits that never happened, or of steps that a later attempt has undone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from eagleray.errors import CheckpointError, TakenOver
from eagleray.packaging.checkpoint import CheckpointStore
from eagleray.packaging.storage import Folder

SCHEMA_VERSION = 1
_NAME = re.compile(r"segment-(?P<step>\d+)\.attempt-(?P<attempt>\d+)\.json")
_READERS = 16  # an object store answers each read in tens of milliseconds, and many at once


@dataclass(frozen=True)
class Segment:
    """The steps of one commit since the checkpoint before it."""

    attempt: int
    step: int
    """Of the commit."""
    parent: tuple[int, int] | None
    """(attempt, step) of the checkpoint that the stretch started from; None: from step 0."""
    entries: tuple[list[Any], ...]
    """One for each step after the parent's, as `Entry.to_json` gives them."""

    def __post_init__(self) -> None:
        if self.parent is not None and not (
            self.parent < (self.attempt, self.step) and self.parent[1] <= self.step
        ):
            raise ValueError(
                f"a segment of step {self.step}, attempt {self.attempt} cannot start from step "
                f"{self.parent[1]}, attempt {self.parent[0]}, which is not before it"
            )

    @property
    def name(self) -> str:
        """The file's name."""
        return _name(self.attempt, self.step)

    def to_bytes(self) -> bytes:
        """The file's content: the same segment gives the same bytes."""
        body = {
            "schema_version": SCHEMA_VERSION,
            "attempt": self.attempt,
            "step": self.step,
            "parent": None if self.parent is None else list(self.parent),
            "entries": list(self.entries),
        }
        return _compact(body | {"sha256": _sha256(body)}) + b"\n"


class Journal:
    """The journal of the run in `run_url`. One process writes, any number may read."""

    def __init__(self, run_url: str | os.PathLike[str]) -> None:
        run = Folder(run_url)
        self._folder = run.child("journal")
        self._checkpoints = run.child("checkpoints").url

    @property
    def url(self) -> str:
        """The folder of the segments."""
        return self._folder.url

    def write(self, segment: Segment) -> None:
        """Write a segment, durably, before the COMMIT of its checkpoint.

        The same segment again changes nothing. Another one of that name is replaced where its commit never
        happened.

        Raises:
            TakenOver: another segment of that name is there, and its checkpoint stands or was overtaken.
            CheckpointError: the checkpoints cannot be read.
            OSError: the storage refuses.
        """
        content = segment.to_bytes()
        if self._folder.exists(segment.name):
            if self._folder.read_bytes(segment.name) == content:
                return
            self._require_uncommitted(segment)
        self._folder.write_bytes(segment.name, content)

    def read(self) -> list[Segment]:
        """Every segment, by attempt and step, those of undone steps too.

        Raises:
            CheckpointError: one is damaged, or the storage cannot be read.
        """
        names = self._names()
        segments = [self._parsed(name, data) for name, data in self._contents(names)]
        return sorted(segments, key=lambda segment: (segment.attempt, segment.step))

    def lineage(self, attempt: int, step: int) -> list[Segment]:
        """The segments that lead from step 0 to the checkpoint of (attempt, step), in order.

        Raises:
            CheckpointError: one of them is missing or damaged, or the storage cannot be read.
        """
        contents = dict(self._contents(self._names()))
        segments: list[Segment] = []
        position: tuple[int, int] | None = (attempt, step)
        while position is not None:
            name = _name(*position)
            if name not in contents:
                raise CheckpointError(
                    f"journal segment {name} is missing in {self.url}; put it back: without it nobody can "
                    f"tell which samples the steps up to {position[1]} took (where an eagleray without a "
                    "journal took them, there is none)"
                )
            segments.append(self._parsed(name, contents[name]))
            position = segments[-1].parent
        return segments[::-1]

    def _require_uncommitted(self, segment: Segment) -> None:
        newest = CheckpointStore(self._checkpoints).newest(lambda _: None)
        if newest is not None and (newest.attempt, newest.step) >= (segment.attempt, segment.step):
            raise TakenOver(
                f"journal segment {segment.name} in {self.url} is there with other steps, and step "
                f"{newest.step} of attempt {newest.attempt} is committed: another worker has taken over; "
                "end this one"
            )

    def _names(self) -> list[str]:
        try:
            return [name for name in self._folder.list() if _NAME.fullmatch(name)]
        except OSError as error:
            raise self._unreadable(error) from error

    def _contents(self, names: list[str]) -> Iterable[tuple[str, bytes]]:
        try:
            with ThreadPoolExecutor(_READERS) as threads:
                return list(zip(names, threads.map(self._folder.read_bytes, names), strict=True))
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"the sample journal in {self.url} cannot be read: {error.strerror or error}; check that the "
            "storage answers and may be read"
        )

    def _parsed(self, name: str, data: bytes) -> Segment:
        """The segment in a file. Raises: CheckpointError."""
        try:
            body = json.loads(data)
            written, version = body.pop("sha256"), body["schema_version"]
            if version != SCHEMA_VERSION:
                raise CheckpointError(
                    f"journal segment {name} in {self.url} has schema version {version!r}, and this eagleray "
                    f"reads {SCHEMA_VERSION}; use the eagleray that wrote it"
                )
            if written != _sha256(body):
                raise ValueError("its SHA-256 is another")
            parent = None if body["parent"] is None else (int(body["parent"][0]), int(body["parent"][1]))
            segment = Segment(body["attempt"], body["step"], parent, tuple(body["entries"]))
            if segment.name != name:
                raise ValueError(f"it is that of {segment.name}")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            reason = error if isinstance(error, ValueError) else "fields are missing"
            raise CheckpointError(
                f"journal segment {name} in {self.url} is damaged ({reason}); take another copy of it"
            ) from error
        return segment


def _name(attempt: int, step: int) -> str:
    return f"segment-{step:08d}.attempt-{attempt:04d}.json"


def _sha256(body: dict[str, Any]) -> str:
    return hashlib.sha256(_compact(body)).hexdigest()


def _compact(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
