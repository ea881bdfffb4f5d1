"""Where the benchmark runs: this checkout, a home and a local cluster of its own, and a cache that stays.

Import this first: it says where eagleray is. What a killed benchmark left behind is ended by the next one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# Last: one of its files is called as one of Python's own.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from kit import checkout, homes

HERE = Path(__file__).resolve().parent
checkout.use(HERE)
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
_HOMES = homes.Homes("bench-serving")
home, mark, down = _HOMES.home, _HOMES.mark, homes.down


def up() -> Any:
    """The state of the benchmark's local cluster, started as `eagleray up` does it."""
    return homes.up(_SETTINGS)


def cache() -> Path:
    """A folder of this user's that stays: the load generator, and the peers' environments."""
    found = os.environ.get("EAGLERAY_CACHE")
    xdg = os.environ.get("XDG_CACHE_HOME")
    base = Path(found) if found else (Path(xdg) if xdg else Path.home() / ".cache") / "eagleray"
    folder = base / "bench-serving"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
