"""The part of `Folder` that speaks to an object store, through fsspec."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path

import fsspec

CHUNK_BYTES = 8 << 20


class Objects:
    """An fsspec file system that writes whole objects."""

    can_rename = False

    def __init__(self, file_system: fsspec.AbstractFileSystem) -> None:
        self._fs = file_system

    def write(self, path: str, data: bytes | memoryview) -> None:
        """Write a whole object."""
        with _os_errors():
            self._fs.pipe_file(path, bytes(data))  # botocore takes no memoryview

    replace = write

    def create(self, path: str, data: bytes) -> bool:
        """Write an object where none is; whether it did."""
        try:
            with _os_errors():
                self._fs.pipe_file(path, data, mode="create")
        except OSError as error:
            if isinstance(error, FileExistsError) or self.exists(path):
                return False  # S3 answers 412, which s3fs passes on as a plain OSError
            raise
        return True

    def upload(self, source: Path, path: str) -> None:
        """Copy a local file."""
        with _os_errors():
            self._fs.put_file(str(source), path)

    def read(self, path: str) -> Iterator[bytes]:
        """The object's content in pieces."""
        with _os_errors(), self._fs.open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk  # pyright: ignore[reportReturnType]  # fsspec types a binary file as text

    def exists(self, path: str) -> bool:
        """Whether an object or prefix is there."""
        self._fs.invalidate_cache()
        with _os_errors():
            return bool(self._fs.exists(path))

    def list(self, path: str) -> list[str]:
        """Names directly below a prefix."""
        self._fs.invalidate_cache()  # s3fs and gcsfs remember listings; other hosts write here too
        try:
            with _os_errors():
                names = self._fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        inside = [str(name).rstrip("/") for name in names]
        return [name.rsplit("/", 1)[-1] for name in inside if name != path]  # pyarrow writes "folder/" too

    def files(self, path: str) -> list[str]:
        """Names of all objects below a prefix."""
        self._fs.invalidate_cache()
        with _os_errors():
            names = [str(name)[len(path) :].lstrip("/") for name in self._fs.find(path)]
        return [name for name in names if name and not name.endswith("/")]

    def modified_at(self, path: str) -> float:
        """When an object was written, in seconds since the epoch."""
        self._fs.invalidate_cache()
        with _os_errors():
            found: datetime.datetime = self._fs.modified(path)
        return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()

    def make(self, path: str) -> None:
        """Nothing: a prefix exists with its first object."""

    def move(self, source: str, target: str) -> None:
        """Not possible: `can_rename` says so."""
        raise AssertionError("an object store cannot rename a folder in one step")

    def sync(self, path: str) -> None:
        """Nothing: an object is durable when its write returns."""

    def remove(self, path: str) -> None:
        """Remove an object, or all below a prefix."""
        self._fs.invalidate_cache()  # what another host has written is to be removed too
        with contextlib.suppress(FileNotFoundError), _os_errors():
            self._fs.rm(path, recursive=True)


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """A store that is away, as an OSError: each client has exceptions of its own (botocore's, aiohttp's)."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConnectionError(lines[0][:300]) from error
