"""Zip files that a job carries: equal content gives equal bytes, so an address that names it is sent once."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from eagleray.errors import InputError

LIMIT_BYTES = 50 * 2**20
"""Of what a job carries, before compression: the cluster keeps it in memory. Data belongs into storage."""

EXCLUDED_FOLDERS = frozenset(
    {
        ".git",
        ".hg",
        ".venv",
        "venv",
        "__pycache__",
        "node_modules",
        ".pytest_cache",
        ".ruff_cache",
        ".mypy_cache",
    }
)
EXCLUDED_SUFFIXES = frozenset({".pyc", ".pyo"})
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """A zip file and the address under which Ray keeps it."""

    content: bytes

    @property
    def name(self) -> str:
        """Ray's name for content of this SHA-1."""
        return f"_ray_pkg_{hashlib.sha1(self.content, usedforsecurity=False).hexdigest()}.zip"

    @property
    def uri(self) -> str:
        """What a runtime environment names."""
        return f"gcs://{self.name}"


def pack(sources: Mapping[str, Path | bytes], *, limit_bytes: int = LIMIT_BYTES) -> Package:
    """Every source under its name in the archive: a file, a folder with what is in it, or bytes as they are.

    Raises:
        InputError: it is larger than `limit_bytes`; the message names the largest file.
    """
    members = dict(_members(sources))
    sizes = {
        name: len(source) if isinstance(source, bytes) else source.stat().st_size
        for name, source in members.items()
    }
    if sum(sizes.values()) > limit_bytes:
        largest = max(sizes, key=lambda name: sizes[name])
        raise InputError(
            f"the files of this job are {_mib(sum(sizes.values()))}, over the limit of {_mib(limit_bytes)} "
            f"(largest: {largest}, {_mib(sizes[largest])}); put data into storage and give its path or URL"
        )
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in sorted(members):
            source = members[name]
            is_executable = isinstance(source, Path) and os.access(source, os.X_OK)
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if is_executable else 0o100644) << 16
            file.writestr(entry, source if isinstance(source, bytes) else source.read_bytes())
    return Package(archive.getvalue())


def _members(sources: Mapping[str, Path | bytes]) -> Iterator[tuple[str, Path | bytes]]:
    for name, source in sources.items():
        if isinstance(source, bytes) or source.is_file():
            yield name, source
            continue
        for path in files_of(source):
            yield f"{name}/{path.relative_to(source).as_posix()}", path


def files_of(folder: Path) -> Iterator[Path]:
    """The files in a folder of the user's code, without caches, installed packages and version control."""
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(set(subfolders) - EXCLUDED_FOLDERS)
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix not in EXCLUDED_SUFFIXES and path.is_file():
                yield path


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
