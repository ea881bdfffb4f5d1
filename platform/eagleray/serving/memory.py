"""The controller's record on disk, and the first admin key beside the cluster's other secrets."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from eagleray.cluster import settings
from eagleray.cluster.files import write_json
from eagleray.errors import EaglerayError, InputError, ServiceError
from eagleray.serving.keys import KeyRing
from eagleray.serving.services import Record

GATEWAYS = "gateways"
"""Of the folder with a file for each gateway that listens."""
ADMIN_KEY_NAME = "local admin"
_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


def load(path: Path) -> Record:
    """The record in `path`; an empty one where there is no file.

    Raises:
        ServiceError: there is a file that cannot be read: nobody shall overwrite it.
    """
    if not path.exists():
        return Record()
    try:
        return Record.from_json(json.loads(path.read_text()))
    except (*_DAMAGED, OSError, InputError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ServiceError(
            f"the controller's record {path} cannot be read ({type(error).__name__}: {reason}); move it away "
            "to start with no models and no keys"
        ) from None


def make_directory(cluster: str) -> tuple[str, str]:
    """The folder for a cluster's record in the home of this machine, made, and why it cannot be written."""
    try:
        settings.make_home()
        folder = settings.serving_dir(cluster)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            return str(folder), ""
    except (EaglerayError, OSError) as error:
        return "", str(error)


def save(path: Path, record: Record) -> None:
    """Write the record whole; only the owner can read it, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(path, record.to_json())


def forget(path: Path) -> None:
    """Remove the record, and its folder where that holds nothing else."""
    for file in (path, *path.parent.glob(f".{path.name}.*")):  # and what a killed writer has left
        file.unlink(missing_ok=True)
    for file in (path.parent / GATEWAYS).glob("*"):
        file.unlink(missing_ok=True)
    for folder in (path.parent / GATEWAYS, path.parent):
        with suppress(OSError):
            folder.rmdir()


def ensure_admin_key(path: Path, keys: KeyRing) -> KeyRing:
    """The ring with an admin key whose text is in `path`, for the local commands; writes it where needed.

    A key of that kind whose text is lost opens nothing any more.
    """
    found = keys.find(_read(path))
    if found is not None and "admin" in found.scopes:
        return keys
    for key in list(keys.keys.values()):
        if key.name == ADMIN_KEY_NAME:
            keys = keys.revoke(key.id)
    keys, _, text = keys.create(ADMIN_KEY_NAME, ["infer", "admin"])
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)
    return keys


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
