"""Where the benchmark runs: this checkout, a home of its own, a local cluster as `eagleray up` starts it.

Import this first: it says where eagleray is. Everything that is started carries the cluster's mark and is
ended at the end, and what a killed benchmark left behind is ended by the next one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
_FOUND = [str(ROOT / "platform"), str(ROOT / "tests"), str(Path(__file__).resolve().parent)]
sys.path[:0] = [path for path in _FOUND if path not in sys.path]
sys.path.append(str(ROOT / "benchmarks"))  # last: one of its files is called as one of Python's own
os.environ["PYTHONPATH"] = str(ROOT / "platform")  # of drivers and workers alike
CLUSTER = "bench"
_HOMES = Path(tempfile.gettempdir()) / f"eagleray-bench-{os.getuid()}"
_SETTINGS = ("idle_timeout_s=3600", "max_nodes=5", "node_types.serve_gpu.max_workers=0")
"""Nodes stay between two rows: starting them is part of none but those that lose one. Four train. What Ray
Train asks for has no labels: it would have nodes of the serving kind started in their places."""


@contextmanager
def home() -> Iterator[Path]:
    """An EAGLERAY_HOME of this process alone; at the end whatever runs in it is ended, and it is removed."""
    from eagleray.cluster import processes

    _end_leftovers()
    me = processes.this_process()
    folder = _HOMES / f"{me.pid}-{me.start}"
    folder.mkdir(parents=True, mode=0o700)
    os.environ["EAGLERAY_HOME"] = str(folder)
    os.environ["EAGLERAY_STORAGE"] = str(folder / "storage")
    os.environ["EAGLERAY_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    try:
        yield folder
    finally:
        with processes.undisturbed():
            _end(folder)


class Cluster:
    """A local cluster that is started when the first row wants it, and anew where a row has broken it."""

    def __init__(self) -> None:
        self._state: Any = None

    def environment(self) -> dict[str, str]:
        """Of a process that is to reach the cluster, which is up afterwards."""
        from eagleray.cluster import environment, local, state

        if self._state is None or not local.is_ready(self._state):
            self.down()
            from eagleray.workflows.up import up

            self._state = up(CLUSTER, ROOT / "local.toml", _SETTINGS, say=lambda _: None)
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
        from eagleray.cluster import local
        from eagleray.errors import ClusterNotRunning

        with contextlib.suppress(ClusterNotRunning):
            local.down(CLUSTER, say=lambda _: None)
        self._state = None


def _end_leftovers() -> None:
    from eagleray.cluster import processes

    before = os.environ.get("EAGLERAY_HOME")
    for folder in _HOMES.glob("*-*"):
        pid, _, start = folder.name.partition("-")
        if not processes.Process(int(pid), int(start)).is_alive:
            os.environ["EAGLERAY_HOME"] = str(folder)
            _end(folder)
    if before is not None:
        os.environ["EAGLERAY_HOME"] = before


def _end(folder: Path) -> None:
    from eagleray.cluster import local, state

    for name in state.names():
        local.down(name, say=lambda _: None)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        _HOMES.rmdir()
