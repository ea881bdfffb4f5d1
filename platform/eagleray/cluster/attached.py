"""Clusters that others started and that serve by our ingress: what `attach` wrote down, found by name.

<home>/attached/<name>/   0700
    attached.json         address of the cluster, of the ingress
    admin.key             0600, an admin key of the ingress
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from eagleray.cluster import settings
from eagleray.cluster.files import read_json, write_json


@dataclass(frozen=True)
class AttachedCluster:
    """A Ray cluster with our ingress on it."""

    name: str
    address: str
    """Of its GCS, as host:port."""
    ingress_url: str
    """As the head names it: a loopback address is the head's."""
    created_s: float
    """Seconds since the epoch at which it was attached."""

    @property
    def directory(self) -> Path:
        """Its folder under the home."""
        return directory(self.name)

    @property
    def admin_key_path(self) -> Path:
        """The file with an admin key of the ingress."""
        return self.directory / "admin.key"


def directory(name: str) -> Path:
    """The folder of the attached cluster called `name`."""
    return settings.home() / "attached" / name


def read(name: str) -> AttachedCluster | None:
    """What was written down; None where nothing was."""
    found = read_json(directory(name) / "attached.json") or {}
    try:
        return AttachedCluster(**found)
    except TypeError:
        return None


def write(cluster: AttachedCluster) -> None:
    """Write it down."""
    settings.make_home()
    cluster.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(cluster.directory / "attached.json", asdict(cluster))


def forget(name: str) -> None:
    """Remove its folder."""
    shutil.rmtree(directory(name), ignore_errors=True)


def names() -> list[str]:
    """Names of all attached clusters."""
    return sorted(path.parent.name for path in (settings.home() / "attached").glob("*/attached.json"))
