"""Folders with the Python files that a process imports, which go with it."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_PREFIX = "eagleray-code-"


def code_folder(files: Mapping[str, bytes]) -> Path:
    """A new folder with these files, of this process alone; removed when it ends.

    Ray ends its workers by SIGKILL, and then nobody removes it. So whoever makes the next one on this machine
    removes what is left of processes that are gone: each holds a lock on its folder while it lives.

    Raises: OSError: the disk refuses.
    """
    _remove_leftovers()
    root = _locked_folder()
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def _locked_folder() -> Path:
    while True:
        root = Path(tempfile.mkdtemp(prefix=_PREFIX))
        with suppress(FileNotFoundError):
            held = os.open(root, os.O_RDONLY)  # until this process ends
            if _locks(held) and root.exists():
                return root
            os.close(held)  # another process took it for a leftover, just when it was made


def _remove_leftovers() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # it is another user's, or somebody else removes it
            held = os.open(path, os.O_RDONLY)
            try:
                if _locks(held):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(held)


def _locks(descriptor: int) -> bool:
    """Take the lock, if nobody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
