"""MANIFEST.json: the size and SHA-256 of each file of a folder. Its own digest is the folder's identity."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eagleray.errors import CheckpointError
from eagleray.packaging.storage import Folder

NAME = "MANIFEST.json"
MARKER = "COMMIT"
_FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DamageError(Exception):
    """A folder does not hold what its manifest says; the message goes on from the folder's name."""


@dataclass(frozen=True)
class FileEntry:
    """What a file must be."""

    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, data: bytes | memoryview) -> FileEntry:
        """The entry of a file with this content."""
        return cls(hashlib.sha256(data).hexdigest(), len(data))


@dataclass(frozen=True)
class Manifest:
    """The files of a folder."""

    files: Mapping[str, FileEntry]

    def to_bytes(self) -> bytes:
        """The content of MANIFEST.json: the same files give the same bytes."""
        files = {
            name: {"sha256": entry.sha256, "size_bytes": entry.size_bytes}
            for name, entry in sorted(self.files.items())
        }
        return (json.dumps({"format": _FORMAT, "files": files}, indent=2) + "\n").encode()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of MANIFEST.json."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """The manifest that was written. Raises: DamageError where `data` is not what `to_bytes` writes."""
        try:
            document = json.loads(data)
            if document["format"] != _FORMAT:
                raise DamageError(f"{NAME} has format {document['format']!r}, this eagleray reads {_FORMAT}")
            manifest = cls({name: _entry(name, entry) for name, entry in document["files"].items()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamageError(f"{NAME} cannot be read") from error
        if manifest.to_bytes() != data:
            raise DamageError(f"{NAME} cannot be read")
        return manifest

    def check(self, name: str, data: bytes) -> bytes:
        """`data` itself, where it is what the manifest says of `name`. Raises: DamageError."""
        if FileEntry.of(data) != self.files[name]:
            raise DamageError(f"{name} does not match its manifest")
        return data


def verify_directory(url: str | os.PathLike[str]) -> Manifest:
    """The manifest of a folder, after reading every file and comparing it.

    Any folder with a MANIFEST.json: a checkpoint or a model package, local or behind an fsspec URL. A file
    that the manifest does not list is an error too (COMMIT and names that begin with a dot aside).

    Raises:
        CheckpointError: the folder or its manifest is missing, or a file is missing, unlisted or differs.
    """
    folder = Folder(url)
    try:
        return verify(folder)
    except DamageError as error:
        raise CheckpointError(f"{folder.url}: {error}; take another copy of it") from error


def verify(folder: Folder) -> Manifest:
    """As `verify_directory`. Raises: DamageError; CheckpointError where the storage itself fails."""
    manifest = verify_names(folder)
    for name, entry in manifest.files.items():
        if _entry_at(folder, name) != entry:
            raise DamageError(f"{name} does not match its manifest")
    return manifest


def verify_names(folder: Folder) -> Manifest:
    """The manifest, after looking for its files but not into them. Raises: as `verify`."""
    manifest = Manifest.from_bytes(read(folder, NAME))
    present = set(folder.files())
    if missing := sorted(set(manifest.files) - present):
        raise DamageError(f"{missing[0]} is missing")
    unlisted = sorted(present - set(manifest.files) - {NAME, MARKER})
    if unlisted := [name for name in unlisted if not os.path.basename(name).startswith(".")]:
        raise DamageError(f"{unlisted[0]} is not listed in its manifest")
    return manifest


def read(folder: Folder, name: str) -> bytes:
    """The file's content. Raises: DamageError: it is missing; CheckpointError: the storage fails."""
    try:
        return folder.read_bytes(name)
    except OSError as error:
        raise explain(error, folder, name) from error


def explain(error: OSError, folder: Folder, name: str) -> Exception:
    """A missing or rotten file is damage, to fall back from; a storage that refuses or is away is not."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return DamageError(f"{name} is missing")
    if error.errno == 5:  # EIO: the disk cannot read these blocks
        return DamageError(f"{name} cannot be read from the disk")
    return CheckpointError(
        f"{folder.url}/{name} cannot be read: {error.strerror or error}; "
        "check that the storage answers and may be read"
    )


def _entry_at(folder: Folder, name: str) -> FileEntry:
    digest, size_bytes = hashlib.sha256(), 0
    try:
        for chunk in folder.read_chunks(name):
            digest.update(chunk)
            size_bytes += len(chunk)
    except OSError as error:
        raise explain(error, folder, name) from error
    return FileEntry(digest.hexdigest(), size_bytes)


def _entry(name: str, entry: Any) -> FileEntry:
    parts = name.split("/")
    if "\\" in name or any(part in {"", ".", ".."} for part in parts):
        raise DamageError(f"{NAME} names a file outside the folder: {name!r}")
    sha256, size_bytes = entry["sha256"], entry["size_bytes"]
    if not _SHA256.fullmatch(sha256) or type(size_bytes) is not int:
        raise DamageError(f"{NAME} cannot be read")
    return FileEntry(sha256, size_bytes)
