"""Where the benchmark runs: this checkout, a home of its own, a local cluster as `eagleray up` starts it.

Import this first: it says where eagleray is. Everything that is started carries the cluster's mark and is
ended at the end, and what a killed benchmark left behind is ended by the next one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# Last: one of its files is called as one of Python's own.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from kit import checkout, homes

checkout.use(checkout.TESTS, Path(__file__).resolve().parent)
CLUSTER, ROOT = homes.CLUSTER, checkout.ROOT
_SETTINGS = ("idle_timeout_s=3600", "max_nodes=5", "node_types.serve_gpu.max_workers=0")
"""Nodes stay between two rows: starting them is part of none but those that lose one. Four train. What Ray
Train asks for has no labels: it would have nodes of the serving kind started in their places."""
home = homes.Homes("bench").home


class Cluster:
    """A local cluster that is started when the first row wants it, and anew where a row has broken it."""

    def __init__(self) -> None:
        self._state: Any = None

    def environment(self) -> dict[str, str]:
        """Of a process that is to reach the cluster, which is up afterwards."""
        from eagleray.cluster import environment, local, state

        if self._state is None or not local.is_ready(self._state):
            self.down()
            self._state = homes.up(_SETTINGS)
        mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = os.pathsep.join([str(Path(sys.executable).parent), mine["PATH"]])
        interface = {"GLOO_SOCKET_IFNAME": environment.interface_of(self._state.host)}
        return {
            **mine,
            **state.environment(self._state),
            **interface,
            "PATH": path,
            "RAY_SCHEDULER_EVENTS": "0",
        }

    def down(self) -> None:
        """End it, if there is one."""
        homes.down()
        self._state = None
