"""`eagleray env`: the exports with which Ray's own commands, or the SDK, reach a local cluster."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from eagleray.cluster import state


def env(name: str = state.DEFAULT_NAME) -> dict[str, str]:
    """Variables for `ray job submit`, `ray status`, `ray list`, `serve status` and `ray.init`.

    Raises: ClusterNotRunning
    """
    cluster = state.find(name)
    return {**state.environment(cluster), "RAY_DASHBOARD_ADDRESS": cluster.dashboard_url}


def as_shell(variables: dict[str, str]) -> str:
    """Text for `eval "$(eagleray env)"`: the variables, and this installation's commands in the path."""
    lines = [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]
    return "\n".join([*lines, f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'])


def for_sdk(name: str = state.DEFAULT_NAME) -> str:
    """Text for `eval "$(eagleray env --sdk)"`: the ingress's address, and its admin key by the file's name.

    Raises:
        ClusterNotRunning
        ClusterError: it was started without serving, or its ingress has not started yet.
    """
    cluster = state.find(name)
    url, key_path = state.ingress_url(cluster), state.admin_key_path(cluster)
    return (
        f'export EAGLERAY_URL={shlex.quote(url)}\nexport EAGLERAY_KEY="$(cat {shlex.quote(str(key_path))})"'
    )
