"""`eagleray up`: a local elastic cluster, ready for jobs; its ingress comes up beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from eagleray.cluster import attached, local
from eagleray.cluster.state import DEFAULT_NAME, ClusterState
from eagleray.errors import InputError
from eagleray.specs import LocalSpec, load

SERVING: Mapping[str, Sequence[str]] = {"serving": ["-m", "eagleray.serving.start"]}
"""The cluster's helper that starts the ledger and the serving controller."""
LEDGER: Mapping[str, Sequence[str]] = {"ledger": ["-m", "eagleray.cluster.ledger"]}
"""The one that starts the ledger alone, where the cluster does not serve."""


def up(
    name: str = DEFAULT_NAME,
    local_file: str | Path = "local.toml",
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> ClusterState:
    """Start the cluster called `name` as `local_file` describes it; returns when it accepts jobs.

    Serving, where the file does not turn it off, is started by the cluster itself after that.

    Raises:
        SpecError: the file, or cluster.yaml beside it, cannot be right.
        InputError: an attached cluster has that name.
        ClusterError: it runs already, a port is in use, or Ray did not start.
    """
    if attached.read(name) is not None:
        raise InputError(
            f"an attached cluster is called {name!r}; choose another --name, or `eagleray down --name {name}`"
        )
    spec = load(LocalSpec, local_file, overrides)
    cluster = local.up(name, spec, helpers=SERVING if spec.serving.enabled else LEDGER, say=say)
    if cluster.ingress_url:
        say(f"models will be served at {cluster.ingress_url} in some seconds (`eagleray status` says when)")
    return cluster
