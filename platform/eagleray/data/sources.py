"""Which files a table consists of: local paths, folders, globs and fsspec URLs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from eagleray.errors import DataError

FORMATS = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "csv", ".arrow": "arrow",
    ".feather": "arrow", ".ipc": "arrow", ".jsonl": "jsonl", ".ndjson": "jsonl",
}  # fmt: skip
_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "md5", "content_md5", "VersionId", "generation")


@dataclass(frozen=True)
class Source:
    """One file of a table."""

    name: str
    """What messages call it: its path, or its URL."""
    path: str
    file_system: fsspec.AbstractFileSystem
    num_bytes: int
    version: str
    """What an object store says of the content (ETag, checksum); empty on a disk."""
    format: str

    def open(self) -> pa.NativeFile:
        """The file, seekable, to be closed by the caller."""
        if isinstance(self.file_system, LocalFileSystem):
            return pa.OSFile(self.path)
        return pa.PythonFile(self.file_system.open(self.path, "rb"), mode="r")


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turns whatever a reader or a file system raises into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{source.name}: the file has gone since the run began; put it back") from error
    except Exception as error:  # pyarrow's, and those of any fsspec file system
        raise DataError(
            f"{source.name}: cannot be read as {source.format}: {_first_line(error)}; "
            "the file may be cut off or damaged, or be of another data.format"
        ) from error


def find(paths: Sequence[str], file_format: str) -> list[Source]:
    """The files that `paths` name, each once: paths in their order, files of a folder or glob sorted.

    Raises: DataError if there are none, one is empty (0 bytes) or the formats differ.
    """
    found: dict[str, Source] = {}
    for path in paths:
        for source in _expand(path, file_format):
            found.setdefault(source.name, source)
    sources = list(found.values())
    for source in sources:
        if source.num_bytes == 0:
            raise DataError(f"{source.name}: the file is empty (0 bytes); remove it, or write it again")
    formats = {source.format: source.name for source in sources}
    if len(formats) > 1:
        (first, one), (second, other) = list(formats.items())[:2]
        raise DataError(f"{one} is {first} and {other} is {second}; name files of one format in data.paths")
    return sources


def _expand(path: str, file_format: str) -> list[Source]:
    file_system, root, infos = _listed(path)
    # A folder may hold other things too (README, _SUCCESS); a file that is named is meant.
    is_named = len(infos) == 1 and infos[0]["name"].rstrip("/") == root.rstrip("/")
    chosen = [info for info in infos if is_named or _is_data(info["name"], root, file_format)]
    if not chosen:
        what = "no such file, folder or match" if not infos else "no file of a known format here"
        raise DataError(f"{path}: {what}; known are {', '.join(FORMATS)} (or give data.format)")
    return [_source(file_system, info, file_format) for info in chosen]


def _listed(path: str) -> tuple[fsspec.AbstractFileSystem, str, list[dict[str, Any]]]:
    """The file system of a path, the path in it, and the files there (none if it does not exist)."""
    try:
        file_system, root = fsspec.url_to_fs(path)
        try:
            return file_system, root, _infos(file_system, root)
        except FileNotFoundError:
            return file_system, root, []
    except ImportError as error:
        raise DataError(f"{path}: {_first_line(error)}") from error
    except Exception as error:  # each file system has exceptions of its own
        raise DataError(f"{path}: cannot be listed: {type(error).__name__}: {_first_line(error)}") from error


def _infos(file_system: fsspec.AbstractFileSystem, root: str) -> list[dict[str, Any]]:
    listed: Any
    if any(character in root for character in "*?["):
        listed = file_system.glob(root, detail=True)
    elif file_system.isdir(root):
        listed = file_system.find(root, detail=True)
    else:
        return [file_system.info(root)]
    return [info for _, info in sorted(listed.items()) if info["type"] == "file"]


def _is_data(name: str, root: str, file_format: str) -> bool:
    inside = name.removeprefix(root).strip("/") if name.startswith(root) else name.rpartition("/")[2]
    is_hidden = any(part.startswith(("_", ".")) for part in inside.split("/"))
    return not is_hidden and (file_format != "auto" or _suffix(name) in FORMATS)


def _source(file_system: fsspec.AbstractFileSystem, info: dict[str, Any], file_format: str) -> Source:
    path = str(info["name"])
    is_local = isinstance(file_system, LocalFileSystem)
    name = path if is_local else str(file_system.unstrip_protocol(path))
    if file_format == "auto":
        if _suffix(path) not in FORMATS:
            raise DataError(f"{name}: its name ends in none of {', '.join(FORMATS)}; give data.format")
        file_format = FORMATS[_suffix(path)]
    version = ",".join(str(info[field]) for field in _VERSION_FIELDS if info.get(field))
    return Source(name, path, file_system, int(info.get("size") or 0), version, file_format)


def _suffix(name: str) -> str:
    _, dot, ending = name.rpartition("/")[2].rpartition(".")
    return f"{dot}{ending}".lower()


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
