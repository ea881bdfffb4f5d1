"""`eagleray down`: ends a local cluster and removes what it left."""

from __future__ import annotations

from collections.abc import Callable

from eagleray.cluster import local
from eagleray.cluster.state import DEFAULT_NAME


def down(name: str = DEFAULT_NAME, say: Callable[[str], None] = print) -> local.DownReport:
    """End every process of the cluster called `name`. Raises: ClusterNotRunning."""
    return local.down(name, say=say)
