"""`eagleray env`: the exports with which Ray's own commands reach a local cluster."""

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
