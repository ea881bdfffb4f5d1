"""Checkpoints of a run: committed whole or not at all, checked when read, fenced by the run attempt.

    <run>/checkpoints/step-00000150.attempt-0001/
        weights.safetensors  optimizer.safetensors  state.json     what the caller gave
        MANIFEST.json                                              size and SHA-256 of each
        COMMIT                                                     attempt and manifest digest; written last

On disk: temporary folder, files, manifest, all synced; rename; sync; COMMIT; sync. On an object store: the
same files under their final names, COMMIT last. A folder without its exact COMMIT does not count.

The newest checkpoint is the one of the newest attempt, and in it of the highest step: an attempt that went on
from step 100 because step 150 was damaged has overtaken it at step 110.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eagleray.errors import CheckpointError, TakenOver
from eagleray.packaging import manifest as manifests
from eagleray.packaging.manifest import MARKER, DamageError, FileEntry, Manifest
from eagleray.packaging.storage import Folder
from eagleray.packaging.tensors import SUFFIX, Image, read_tensors
from eagleray.packaging.tree import flatten, unflatten

if TYPE_CHECKING:
    from torch import Tensor

_STATE = "state.json"
_NAME = re.compile(r"(?P<temporary>\.tmp-)?step-(?P<step>\d+)\.attempt-(?P<attempt>\d+)(-[0-9a-f]+)?")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint that verified when it was found. `state` is what `commit` was given."""

    step: int
    attempt: int
    url: str
    state: dict[str, Any]
    manifest: Manifest = field(repr=False)

    @property
    def names(self) -> list[str]:
        """The names that `tensors` knows."""
        return sorted(name.removesuffix(SUFFIX) for name in self.manifest.files if name.endswith(SUFFIX))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors saved as `name`, on the CPU; compared with the manifest again as they are read.

        Raises:
            CheckpointError: the checkpoint has no such tensors, or the file was damaged since it was found.
        """
        if name not in self.names:
            raise CheckpointError(f"{self.url} has no tensors {name!r}; it has {', '.join(self.names)}")
        try:
            return read_tensors(Folder(self.url), self.manifest, name)
        except DamageError as error:
            raise CheckpointError(f"{self.url}: {error}; start again to use an older checkpoint") from error


@dataclass(frozen=True, order=True)
class _Entry:
    """A folder of the store, by its name. Ordered as the checkpoints are."""

    attempt: int
    step: int
    name: str
    is_temporary: bool


class CheckpointStore:
    """The `checkpoints` folder of one run. One process commits and prunes; any number may read."""

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.folder = Folder(url)
        self._verified: set[str] = set()  # names that this process has verified, for prune

    def commit(
        self,
        step: int,
        *,
        attempt: int,
        tensors: Mapping[str, Mapping[str, Tensor] | Image],
        state: Mapping[str, Any],
        before_commit: Callable[[], None] = lambda: None,
    ) -> Checkpoint:
        """Save a checkpoint; when this returns it is on stable storage.

        Args:
            step: Optimizer steps taken.
            attempt: Number of the run attempt, higher after each restart and resume (`next_attempt`).
            tensors: By file name (`weights`, `optimizer`): tensors by name, of any device and layout
                (dense), or an image of them that stays as it is meanwhile.
            state: Anything that `flatten` takes, without tensors.
            before_commit: Called when the files are there and the checkpoint does not count yet; what it
                raises undoes the commit.

        Returns:
            The checkpoint. Where this step of this attempt was committed before, the new one replaces it.

        Raises:
            TakenOver: a newer attempt has committed or is committing: this one is dead.
            CheckpointError: the storage failed.
                In both cases earlier commits are as they were and nothing of this one is left.
        """
        self._fence(step, attempt)
        commit = _Commit(self.folder, step, attempt)
        try:
            manifest = commit.write(tensors, _state_bytes(state))
            self._fence(step, attempt)
            before_commit()
            commit.publish(manifest)
        except BaseException as error:  # Ctrl-C too leaves nothing half done
            commit.undo()
            if isinstance(error, OSError):
                raise CheckpointError(_storage_trouble(step, self.folder, error)) from error
            raise
        self._verified.discard(commit.name)
        return Checkpoint(step, attempt, self.folder.child(commit.name).url, dict(state), manifest)

    def newest(self, on_damaged: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that verifies; None where there is none (none committed, or all damaged).

        Args:
            on_damaged: Called once, in words, for each newer one that is damaged or was not committed.

        Raises:
            CheckpointError: the storage cannot be read.
        """
        damages: list[str] = []
        found = None
        for entry in self._entries():
            try:
                found = self._open(entry)
                break
            except DamageError as damage:
                damages.append(f"checkpoint step {entry.step}: {damage}")
        using = f"using step {found.step}" if found else "no older checkpoint to use"
        for damage in damages:
            on_damaged(f"{damage}; {using}")
        return found

    def next_attempt(self) -> int:
        """A number above that of every attempt which has committed here, or begun to. The first is 1."""
        return 1 + max((entry.attempt for entry in self._entries()), default=0)

    def prune(self, keep: int) -> None:
        """Remove what is older than the `keep` newest that verify, and leftovers of dead attempts.

        Nothing is removed that is newer than the newest which verifies, so nothing at all where none does.

        Raises:
            CheckpointError: the storage cannot be read, or refuses to delete.
        """
        assert keep >= 1
        entries = self._entries()
        kept = list(itertools.islice(filter(self._verifies, entries), keep))
        if not kept:
            return
        try:
            for entry in entries:
                is_past = len(kept) == keep and entry < kept[-1] and not entry.is_temporary
                if is_past or self._is_dead(entry, kept[0]):
                    _remove(self.folder, entry.name)
        except OSError as error:
            raise CheckpointError(
                f"old checkpoints in {self.folder.url} cannot be removed: {error.strerror or error}; "
                "the run needs the right to delete there"
            ) from error

    def _is_dead(self, entry: _Entry, newest: _Entry) -> bool:
        """Whether an older attempt, or an older step of this one, left `entry` unfinished."""
        if entry.is_temporary:
            return entry.attempt < newest.attempt
        return entry < newest and not self.folder.exists(f"{entry.name}/{MARKER}")

    def _fence(self, step: int, attempt: int) -> None:
        newest = max((entry.attempt for entry in self._entries()), default=attempt)
        if newest > attempt:
            raise TakenOver(
                f"checkpoint step {step} of attempt {attempt} is refused: attempt {newest} of the run has "
                f"taken over in {self.folder.url}; end this one"
            )

    def _entries(self) -> list[_Entry]:
        """Every checkpoint folder by its name, finished or not, newest first."""
        try:
            matches = [match for name in self.folder.list() if (match := _NAME.fullmatch(name))]
        except OSError as error:
            raise CheckpointError(
                f"checkpoints in {self.folder.url} cannot be listed: {error.strerror or error}; "
                "check that the storage answers and may be read"
            ) from error
        return sorted(
            (_Entry(int(m["attempt"]), int(m["step"]), m[0], m["temporary"] is not None) for m in matches),
            reverse=True,
        )

    def _verifies(self, entry: _Entry) -> bool:
        if entry.name not in self._verified:
            try:
                self._open(entry)
            except DamageError:
                return False
            self._verified.add(entry.name)
        return True

    def _open(self, entry: _Entry) -> Checkpoint:
        """The checkpoint, every file compared with its manifest. Raises: DamageError."""
        folder = self.folder.child(entry.name)
        if entry.is_temporary or not folder.exists(MARKER):
            raise DamageError("was not committed")
        manifest = manifests.verify(folder)
        if manifests.read(folder, MARKER) != _marker(entry.step, entry.attempt, manifest):
            raise DamageError(f"{MARKER} does not match its manifest")
        state = json.loads(manifest.check(_STATE, manifests.read(folder, _STATE)))
        return Checkpoint(entry.step, entry.attempt, folder.url, unflatten({}, state), manifest)


class _Commit:
    """One commit under way: write the files, then publish, or undo."""

    def __init__(self, store: Folder, step: int, attempt: int) -> None:
        self.name = f"step-{step:08d}.attempt-{attempt:04d}"
        self._store, self._step, self._attempt = store, step, attempt
        self._staged = self._temporary() if store.can_rename else self.name
        self._replaced: str | None = None  # where an earlier commit of the same step waits meanwhile
        self._is_published = False
        self._is_done = False

    def write(self, tensors: Mapping[str, Mapping[str, Tensor] | Image], state: bytes) -> Manifest:
        """Write and sync every file and the manifest, in the staged folder."""
        if not self._store.can_rename:
            _remove(self._store, self.name)
        staged = self._store.child(self._staged)
        files: dict[str, FileEntry] = {}
        for name, data in _payloads(tensors, state):
            staged.write_new(name, data)
            files[name] = FileEntry.of(data)
        manifest = Manifest(files)
        staged.write_new(manifests.NAME, manifest.to_bytes())
        staged.sync()
        return manifest

    def publish(self, manifest: Manifest) -> None:
        """Give the staged folder its name, then its marker; an earlier commit of this step goes last."""
        if self._staged != self.name:
            if self._store.exists(self.name):
                self._replaced = self._temporary()
                self._store.move(self.name, self._replaced)
            self._is_published = True
            self._store.move(self._staged, self.name)
        target = self._store.child(self.name)
        target.write_new(MARKER, _marker(self._step, self._attempt, manifest))
        target.sync()
        self._is_done = True
        if self._replaced:
            with contextlib.suppress(OSError):  # the next attempt's prune takes what stays
                _remove(self._store, self._replaced)

    def undo(self) -> None:
        """Remove what this commit wrote and put back what it replaced, as far as the storage lets us."""
        if self._is_done:
            return
        with contextlib.suppress(OSError):
            _remove(self._store, self._staged)
        with contextlib.suppress(OSError):
            if self._is_published:
                _remove(self._store, self.name)
        with contextlib.suppress(OSError):
            if self._replaced and self._store.exists(self._replaced):
                self._store.move(self._replaced, self.name)

    def _temporary(self) -> str:
        return f".tmp-{self.name}-{secrets.token_hex(4)}"


def _payloads(
    tensors: Mapping[str, Mapping[str, Tensor] | Image], state: bytes
) -> Iterator[tuple[str, bytes | memoryview]]:
    """The files one by one, so that one at a time is in memory twice."""
    for name, group in tensors.items():
        assert _PART.fullmatch(name), f"{name!r} cannot name a file"
        yield name + SUFFIX, (group if isinstance(group, Image) else Image(group)).data
    yield _STATE, state


def _state_bytes(state: Mapping[str, Any]) -> bytes:
    tensors, document = flatten(dict(state))
    if tensors:
        raise TypeError(f"state holds a tensor at {next(iter(tensors))}; flatten it and pass it in `tensors`")
    # In one line: indenting is done in Python, ten times as slowly, and a run's steps would wait for it.
    return (json.dumps(document) + "\n").encode()


def _marker(step: int, attempt: int, manifest: Manifest) -> bytes:
    return (json.dumps({"step": step, "attempt": attempt, "manifest": manifest.digest}) + "\n").encode()


def _remove(store: Folder, name: str) -> None:
    """Remove a checkpoint folder, its marker first: half removed, it does not count."""
    store.remove(f"{name}/{MARKER}")
    store.remove(name)


def _storage_trouble(step: int, folder: Folder, error: OSError) -> str:
    what_to_do = {
        errno.ENOSPC: "free space there, or point EAGLERAY_STORAGE to a larger place and resume the run",
        errno.EDQUOT: "free some of this quota, or point EAGLERAY_STORAGE elsewhere and resume the run",
        errno.EACCES: "give this user the right to write there",
        errno.EROFS: "mount it writable, or point EAGLERAY_STORAGE to another place",
    }.get(error.errno or 0, "check the storage, then resume the run")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return (
        f"checkpoint step {step} cannot be written to {folder.url}: {reason}; {what_to_do} "
        "(earlier checkpoints are untouched)"
    )


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder's name is one that this module gives, finished or not."""
    return _NAME.fullmatch(name) is not None
