"""Where Eagleray keeps its things; standard library only, read at call time."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """EAGLERAY_HOME, or ~/.eagleray: state of local clusters and of the serving controller."""
    return Path(os.environ.get("EAGLERAY_HOME") or "~/.eagleray").expanduser().absolute()


def storage_url() -> str:
    """EAGLERAY_STORAGE, or <home>/storage: any fsspec URL or path, for runs, checkpoints and packages."""
    return os.environ.get("EAGLERAY_STORAGE") or str(home() / "storage")


def tracking_uri() -> str:
    """EAGLERAY_TRACKING_URI, or a SQLite file in the home: where MLflow writes."""
    return os.environ.get("EAGLERAY_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def clusters_dir() -> Path:
    """The folder with one folder per local cluster."""
    return home() / "clusters"
