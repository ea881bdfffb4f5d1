"""`eagleray down`: ends a local cluster and removes what it left."""

from __future__ import annotations

from collections.abc import Callable

from eagleray.cluster import local, settings
from eagleray.cluster.files import remove_tree
from eagleray.cluster.state import DEFAULT_NAME


def down(name: str = DEFAULT_NAME, say: Callable[[str], None] = print) -> local.DownReport:
    """End every process of the cluster called `name`, and forget what it served and its keys.

    Raises:
        ClusterNotRunning: there is nothing of that name.
        ClusterError: something does not end, or cannot be deleted.
    """
    report = local.down(name, say=say)
    remove_tree(settings.serving_dir(name))
    return report
