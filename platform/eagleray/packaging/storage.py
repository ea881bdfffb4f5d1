"""A folder on local disk or behind any fsspec URL: the few operations that runs need, durable.

On disk a write is synced before it returns, and whole-file writes go through a temporary name. An object
store writes each object at once or not at all, so there the same calls need neither.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from eagleray.packaging.object_store import CHUNK_BYTES, Objects


class _Backend(Protocol):
    can_rename: bool

    def write(self, path: str, data: bytes | memoryview) -> None: ...
    def replace(self, path: str, data: bytes) -> None: ...
    def create(self, path: str, data: bytes) -> bool: ...
    def upload(self, source: Path, path: str) -> None: ...
    def read(self, path: str) -> Iterator[bytes]: ...
    def exists(self, path: str) -> bool: ...
    def list(self, path: str) -> list[str]: ...
    def files(self, path: str) -> list[str]: ...
    def modified_at(self, path: str) -> float: ...
    def make(self, path: str) -> None: ...
    def move(self, source: str, target: str) -> None: ...
    def sync(self, path: str) -> None: ...
    def remove(self, path: str) -> None: ...


class Folder:
    """A folder at `url` (a local path or any fsspec URL). It need not exist: writing makes it.

    Names are relative, with `/` between parts. Methods raise OSError (FileNotFoundError: a name is missing).
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        file_system, path = fsspec.url_to_fs(os.path.expanduser(os.fspath(url)))
        self._is_local = isinstance(file_system, LocalFileSystem)
        self._backend: _Backend = _Disk() if self._is_local else Objects(file_system)
        self._path: str = path.rstrip("/")
        self.url: str = self._path if self._is_local else str(file_system.unstrip_protocol(self._path))

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    @property
    def can_rename(self) -> bool:
        """Whether a folder can be renamed in one step (local disk)."""
        return self._backend.can_rename

    @property
    def local_path(self) -> Path | None:
        """The folder on this machine's disk; None behind a URL."""
        return Path(self._path) if self._is_local else None

    def child(self, name: str) -> Folder:
        """The folder `name` inside this one."""
        return Folder(f"{self.url}/{name}")

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a whole file: readers see the old content or the new one, also after a crash."""
        self._make_parent(name)
        self._backend.replace(self._join(name), data)

    def write_new(self, name: str, data: bytes | memoryview) -> None:
        """Write and sync a file in place: for folders that nobody reads yet; `sync` the folder afterwards."""
        self._make_parent(name)
        self._backend.write(self._join(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a whole file where none of that name is yet; of many that try at once one gets True.

        An object store must know conditional writes, and decide at the end of the write (S3 does). On one
        that does not know them, two may get True; on one that decides before it writes (OpenStack Swift), two
        that try within the same milliseconds may.
        """
        self._make_parent(name)
        return self._backend.create(self._join(name), data)

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as indented JSON, as `write_bytes` does."""
        self.write_bytes(name, (json.dumps(value, indent=2) + "\n").encode())

    def upload(self, source: Path, name: str) -> str:
        """Copy a local file into the folder; returns its address there."""
        self._make_parent(name)
        self._backend.upload(source, self._join(name))
        return f"{self.url}/{name}"

    def read_bytes(self, name: str) -> bytes:
        """The file's whole content."""
        return b"".join(self.read_chunks(name))

    def read_chunks(self, name: str) -> Iterator[bytes]:
        """The file's content in pieces of a few MiB."""
        return self._backend.read(self._join(name))

    def read_json(self, name: str) -> Any:
        """The file's JSON. Raises: ValueError where it is none."""
        return json.loads(self.read_bytes(name))

    def exists(self, name: str = "") -> bool:
        """Whether the file or folder `name`, or this folder itself, is there."""
        return self._backend.exists(self._join(name))

    def list(self) -> list[str]:
        """The names of the files and folders directly in this one, sorted; empty where it does not exist."""
        return sorted(self._backend.list(self._path))

    def files(self) -> list[str]:
        """The names of all files below this folder, sorted."""
        return sorted(self._backend.files(self._path))

    def modified_at(self, name: str) -> float:
        """When a file was written, by the storage's own clock, in seconds since the epoch."""
        return self._backend.modified_at(self._join(name))

    def make(self) -> None:
        """Make the folder and its parents where they are missing."""
        self._backend.make(self._path)

    def sync(self, name: str = "") -> None:
        """Make the names inside a folder durable."""
        self._backend.sync(self._join(name))

    def move(self, name: str, target: str) -> None:
        """Rename inside this folder, durably, or not at all. Only where `can_rename`."""
        self._backend.move(self._join(name), self._join(target))
        try:
            self.sync()
        except OSError:
            self._backend.move(self._join(target), self._join(name))
            raise

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all below it; a missing one is fine."""
        self._backend.remove(self._join(name))

    def _join(self, name: str) -> str:
        return f"{self._path}/{name}" if name else self._path

    def _make_parent(self, name: str) -> None:
        self._backend.make(os.path.dirname(self._join(name)))


class _Disk:
    """The local file system, through `os` only, so that a test can fail each single operation."""

    can_rename = True

    def write(self, path: str, data: bytes | memoryview) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def replace(self, path: str, data: bytes) -> None:
        with self._replacing(path) as temporary:
            self.write(temporary, data)

    def create(self, path: str, data: bytes) -> bool:
        with self._beside(path) as temporary:
            self.write(temporary, data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        self.sync(os.path.dirname(path))
        return True

    def upload(self, source: Path, path: str) -> None:
        with self._replacing(path) as temporary, source.open("rb") as file:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                while chunk := file.read(CHUNK_BYTES):
                    _write_all(descriptor, chunk)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def _replacing(self, path: str) -> Iterator[str]:
        """A temporary name beside `path` that takes its place at the end."""
        with self._beside(path) as temporary:
            yield temporary
            os.replace(temporary, path)
        self.sync(os.path.dirname(path))

    @contextlib.contextmanager
    def _beside(self, path: str) -> Iterator[str]:
        """A temporary name beside `path`; nothing is left of it."""
        folder, name = os.path.split(path)
        temporary = f"{folder}/.{name}.{secrets.token_hex(4)}"
        try:
            yield temporary
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def read(self, path: str) -> Iterator[bytes]:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def list(self, path: str) -> list[str]:
        try:
            return os.listdir(path)
        except FileNotFoundError:
            return []

    def files(self, path: str) -> list[str]:
        return [
            os.path.relpath(os.path.join(folder, name), path)
            for folder, _, names in os.walk(path)
            for name in names
        ]

    def modified_at(self, path: str) -> float:
        return os.stat(path).st_mtime

    def make(self, path: str) -> None:
        if os.path.isdir(path):
            return
        self.make(os.path.dirname(path))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
        self.sync(os.path.dirname(path))

    def move(self, source: str, target: str) -> None:
        os.rename(source, target)

    def sync(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if os.path.isdir(path) and not os.path.islink(path):
                for name in os.listdir(path):
                    self.remove(f"{path}/{name}")
                os.rmdir(path)
            else:
                os.unlink(path)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[:CHUNK_BYTES]) :]
