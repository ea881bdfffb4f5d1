"""`eagleray up`: a local elastic cluster, ready for jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from eagleray.cluster import local
from eagleray.cluster.state import DEFAULT_NAME, ClusterState
from eagleray.specs import LocalSpec, load


def up(
    name: str = DEFAULT_NAME,
    local_file: str | Path = "local.toml",
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> ClusterState:
    """Start the cluster called `name` as `local_file` describes it.

    Raises:
        SpecError: the file, or cluster.yaml beside it, cannot be right.
        ClusterError: it runs already, a port is in use, or Ray did not start.
    """
    return local.up(name, load(LocalSpec, local_file, overrides), say=say)
