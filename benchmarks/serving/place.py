"""Where the benchmark runs: this checkout, a home and a local cluster of its own, and a cache that stays.

Import this first: it says where eagleray is. What a killed benchmark left behind is ended by the next one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
RESULTS = ROOT / "benchmarks" / "results"
_FOUND = [str(ROOT / "platform"), str(HERE)]
sys.path[:0] = [path for path in _FOUND if path not in sys.path]
sys.path.append(str(ROOT / "benchmarks"))  # last: one of its files is called as one of Python's own
os.environ["PYTHONPATH"] = str(ROOT / "platform")  # of all that is started
CLUSTER = "bench"
_HOMES = Path(tempfile.gettempdir()) / f"eagleray-bench-serving-{os.getuid()}"
_SETTINGS = (
    "idle_timeout_s=3600",
    "max_nodes=1",
    "node_types.cpu_worker.cpus=8",
    "node_types.cpu_worker.memory_mib=8192",
    "node_types.cpu_worker.max_workers=1",
    "node_types.train_gpu.max_workers=0",
    "node_types.serve_gpu.max_workers=0",
)
"""One node has room for every replica of every row: starting nodes is measured elsewhere."""


def cache() -> Path:
    """A folder of this user's that stays: the load generator, and the peers' environments."""
    found = os.environ.get("EAGLERAY_CACHE")
    xdg = os.environ.get("XDG_CACHE_HOME")
    base = Path(found) if found else (Path(xdg) if xdg else Path.home() / ".cache") / "eagleray"
    folder = base / "bench-serving"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


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


def mark() -> str:
    """What the markers of all servers begin with that this benchmark starts."""
    from eagleray.cluster import processes

    me = processes.this_process()
    return f"bench-serving-{me.pid}-{me.start}"


def up() -> Any:
    """The state of the benchmark's local cluster, started as `eagleray up` does it."""
    from eagleray.workflows.up import up

    return up(CLUSTER, ROOT / "local.toml", _SETTINGS, say=lambda _: None)


def down() -> None:
    """End the cluster, if there is one."""
    from eagleray.cluster import local
    from eagleray.errors import ClusterNotRunning

    with contextlib.suppress(ClusterNotRunning):
        local.down(CLUSTER, say=lambda _: None)


def _end_leftovers() -> None:
    from eagleray.cluster import processes

    before = os.environ.get("EAGLERAY_HOME")
    for folder in _HOMES.glob("*-*"):
        pid, _, start = folder.name.partition("-")
        if not processes.Process(int(pid), int(start)).is_alive:
            os.environ["EAGLERAY_HOME"] = str(folder)
            beginning = f"{processes.MARKER}=bench-serving-{folder.name}".encode()
            processes.sweep(functools.partial(_marked, beginning))
            _end(folder)
    if before is not None:
        os.environ["EAGLERAY_HOME"] = before


def _marked(beginning: bytes) -> list[Any]:
    from eagleray.cluster import processes

    found = []
    for pid in processes.all_pids():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if any(word.startswith(beginning) for word in words):
                found.append(processes.of(pid))
    return found


def _end(folder: Path) -> None:
    from eagleray.cluster import local, state

    for name in state.names():
        local.down(name, say=lambda _: None)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        _HOMES.rmdir()
