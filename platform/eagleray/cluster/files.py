"""Small JSON files that are whole or absent."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from eagleray.errors import ClusterError

_DELETE_TRIES = 5
_DELETE_PAUSE_S = 0.1


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` in one step; only the owner can read it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file, indent=1)
    temporary.replace(path)


def read_json(path: Path) -> Any | None:
    """What is in `path`; None where it is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def remove_tree(path: Path) -> None:
    """Delete a folder, also while a dying process still writes into it; nothing happens where there is none.

    Raises:
        ClusterError: something of it is still there after 5 tries, 0.1 s apart.
    """
    failures: list[str] = []
    for attempt in range(_DELETE_TRIES):
        if attempt:
            time.sleep(_DELETE_PAUSE_S)
        failures.clear()
        shutil.rmtree(path, onerror=lambda _call, at, info: failures.append(f"{at}: {info[1]}"))
        if not path.exists():
            return
    reason = failures[0] if failures else "something keeps writing into it"
    raise ClusterError(f"the folder {path} cannot be deleted ({reason})")
