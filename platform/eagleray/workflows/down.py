"""`eagleray down`: ends a local cluster and removes what it left."""

from __future__ import annotations

import time
from collections.abc import Callable

from eagleray.cluster import attached, local, settings
from eagleray.cluster.files import remove_tree
from eagleray.cluster.state import DEFAULT_NAME


def down(name: str = DEFAULT_NAME, say: Callable[[str], None] = print) -> local.DownReport:
    """End every process of the cluster called `name`, and forget what it served and its keys.

    Of a cluster that was attached, only what `attach` started ends.

    Raises:
        ClusterNotRunning: there is nothing of that name.
        ClusterError: something does not end, or cannot be deleted.
    """
    if (found := attached.read(name)) is not None:
        from eagleray.workflows.detach import detach

        began = time.monotonic()
        detach(found, say)
        return local.DownReport(name, 0, time.monotonic() - began)
    report = local.down(name, say=say)
    remove_tree(settings.serving_dir(name))
    return report
