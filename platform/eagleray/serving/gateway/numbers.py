"""Small numbers for the gateways of one machine: each takes the lowest free one, for as long as it lives."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_MOST = 128


def take(folder: Path, stem: str) -> tuple[int, int]:
    """A lock that is held as long as its descriptor is open, and its number.

    Raises: OSError where none is free.
    """
    for number in range(_MOST):
        descriptor = os.open(_lock(folder, stem, number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            continue
        return descriptor, number
    raise OSError(f"{_MOST} gateways write to {folder} already")


def is_taken(folder: Path, stem: str, number: int) -> bool:
    """Whether somebody has that number now."""
    try:
        descriptor = os.open(_lock(folder, stem, number), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock(folder: Path, stem: str, number: int) -> Path:
    return folder / f".{stem}-{number}.lock"
