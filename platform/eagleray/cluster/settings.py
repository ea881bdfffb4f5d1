"""Where Eagleray keeps its things; standard library only, read at call time."""

from __future__ import annotations

import os
from pathlib import Path

from eagleray.errors import InputError

_SQLITE = "sqlite:///"


def home() -> Path:
    """EAGLERAY_HOME, or ~/.eagleray: state of local clusters and of the serving controller.

    Raises:
        InputError: what is there, or above it, is not a folder; there is no such user (~nobody/x).
    """
    given = os.environ.get("EAGLERAY_HOME")
    path = _absolute(given or "~/.eagleray", "EAGLERAY_HOME")
    found = next(filter(os.path.exists, (path, *path.parents)))
    if not found.is_dir():
        kind = "file" if found.is_file() else "special file"
        raise InputError(
            f"EAGLERAY_HOME {path}{'' if given else ' (the default)'}: {found} is a {kind}, not a folder; "
            "set EAGLERAY_HOME to a folder (`up` makes it where there is none)"
        )
    return path


def make_home() -> Path:
    """The home, made where there is none. Raises: InputError: it cannot be made."""
    path = home()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"EAGLERAY_HOME {path}: cannot be made: {error.strerror}; set EAGLERAY_HOME to a folder that you "
            "may write"
        ) from None
    return path


def storage_url() -> str:
    """EAGLERAY_STORAGE, or <home>/storage: any fsspec URL or path, for runs, checkpoints and packages.

    A path is made absolute: a job, and each of its workers, has a working directory of its own.
    """
    given = os.environ.get("EAGLERAY_STORAGE") or str(home() / "storage")
    return given if "://" in given else str(_absolute(given, "EAGLERAY_STORAGE"))


def tracking_uri() -> str:
    """EAGLERAY_TRACKING_URI, or a SQLite file in the home: where MLflow writes. Its path is made absolute."""
    given = os.environ.get("EAGLERAY_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
    path = given.removeprefix(_SQLITE)
    return given if path == given else f"{_SQLITE}{_absolute(path, 'EAGLERAY_TRACKING_URI')}"


def _absolute(path: str, variable: str) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise InputError(
            f"{variable} {path}: whose home folder ~ is cannot be told; set {variable} to a path without ~"
        ) from None


def serving_dir(cluster_name: str) -> Path:
    """What a cluster's serving controller must not forget: it outlives a crash, but not `eagleray down`."""
    return home() / "serving" / cluster_name


def clusters_dir() -> Path:
    """The folder with one folder per local cluster."""
    return home() / "clusters"
