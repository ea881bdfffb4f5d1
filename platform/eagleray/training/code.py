"""A user's own code: kept in the run's folder, so that every node has it, and a resumed run too."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from eagleray.client.package import files_of
from eagleray.packaging import Folder
from eagleray.packaging.code_folder import code_folder


def store_code(paths: Iterable[str], run: Folder) -> None:
    """Copy each file or folder of `paths` into the run's `code` folder, under its own name.

    Of a folder, the same files as a job carries.
    """
    target = run.child("code")
    for path in map(Path, paths):
        for file in [path] if path.is_file() else files_of(path):
            target.write_bytes(file.relative_to(path.parent).as_posix(), file.read_bytes())


def import_code(run: Folder) -> None:
    """Put the run's code on this process's import path, in front."""
    source = run.child("code")
    names = source.files()
    if not names:
        return
    root = source.local_path
    if root is None:
        root = code_folder({name: source.read_bytes(name) for name in names})
    sys.path.insert(0, str(root))
