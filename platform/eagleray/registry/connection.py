"""A client of MLflow, and what is needed around it: settings, one first migration at a time, short errors."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eagleray.errors import EaglerayError, ServiceError

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # on by default; it would call out of the machine
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # 7 means 4 minutes for one call to a server that is away
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def connect(uri: str) -> Any:
    """MLflow's client of a tracking URI, which is also its registry's. The import takes 1.4 s."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if path := _sqlite_path(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # they log each of the 50 migrations of a new file
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def open_client(uri: str) -> Any:
    """As `connect`, the tables of a new SQLite file made."""
    with one_at_a_time(uri):
        client = connect(uri)
        client.search_registered_models(max_results=1)
    return client


@contextlib.contextmanager
def asking(uri: str) -> Iterator[None]:
    """What MLflow raises inside, as ServiceError; its imports may fail in as many ways."""
    try:
        yield
    except EaglerayError:
        raise
    except Exception as error:
        raise ServiceError(
            f"MLflow at {uri} does not answer: {first_line(error)}; start it, or point EAGLERAY_TRACKING_URI "
            "to one that runs"
        ) from error


@contextlib.contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Hold the lock beside a SQLite file: two processes that migrate a new one at once break it (3.17)."""
    path = _sqlite_path(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def first_line(error: Exception) -> str:
    """An exception's message without the page that follows it."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].partition(' with exception ')[0]}"[:300]


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
