"""Worker nodes of a local cluster as they stand on disk, so that a restarted autoscaler finds them again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eagleray.cluster.files import read_json, remove_tree, write_json
from eagleray.cluster.processes import Process

_KEPT_BYTES_PER_FILE = 256 * 1024
_KEPT_FILES_PER_NODE = 40
_KEPT_NODES = 16


@dataclass(frozen=True)
class Node:
    """One worker node: the process group that `node_main` leads."""

    node_id: str
    node_type: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    tags: Mapping[str, str]
    temp_dir: str
    """Ray's temp folder of this node alone: nodes that share one race for its sockets."""
    options: Mapping[str, Any]
    gcs_address: str
    created_s: float
    """Seconds since the epoch."""
    process: Process | None = None
    terminated_s: float = 0.0
    """Seconds since the epoch at which it was asked to end; 0 where it was not."""

    @property
    def has_process(self) -> bool:
        """Whether its leading process runs."""
        return self.process is not None and self.process.is_alive

    @property
    def is_alive(self) -> bool:
        """Whether its leading process runs and nobody asked it to end."""
        return self.has_process and not self.terminated_s

    @property
    def uptime_s(self) -> float:
        """Seconds since it was started."""
        return time.time() - self.created_s


def path_of(nodes_dir: Path, node_id: str) -> Path:
    """The file of one node."""
    return nodes_dir / f"{node_id}.json"


def plan_of(nodes_dir: Path, node_id: str) -> Path:
    """The file of a node that is about to be started; `node_main` reads it."""
    return nodes_dir / f".{node_id}.plan"


def write(path: Path, node: Node) -> None:
    """Write the node down."""
    write_json(path, asdict(node))


def read(path: Path) -> Node | None:
    """The node in a file; None where it is gone or half there."""
    found = read_json(path) or {}
    try:
        process = Process(**found["process"]) if found["process"] else None
        return Node(**{**found, "process": process})
    except (TypeError, KeyError):
        return None


def read_all(nodes_dir: Path) -> list[Node]:
    """Every node on disk, alive or not, oldest first."""
    found = [read(path) for path in nodes_dir.glob("*.json")]
    return sorted((node for node in found if node), key=lambda node: node.created_s)


def retag(nodes_dir: Path, node_id: str, tags: Mapping[str, str]) -> None:
    """Lay `tags` over those of a node; nothing happens where there is no such node.

    The caller keeps other writers of the node's file away meanwhile: their change would be lost.
    """
    node = read(path_of(nodes_dir, node_id))
    if node:
        write(path_of(nodes_dir, node_id), replace(node, tags={**node.tags, **tags}))


def forget(nodes_dir: Path, logs_dir: Path, node: Node) -> None:
    """Keep the end of an ended node's logs under `logs_dir`, then delete its folder and its file.

    Raises:
        ClusterError: the folder cannot be deleted; its file is left too, so that the next call tries again.
    """
    keep_logs(Path(node.temp_dir), logs_dir / node.node_id)
    remove_tree(Path(node.temp_dir))
    for path in (path_of(nodes_dir, node.node_id), plan_of(nodes_dir, node.node_id)):
        path.unlink(missing_ok=True)
    kept = sorted(
        (path for path in logs_dir.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime
    )
    for path in kept[:-_KEPT_NODES]:
        shutil.rmtree(path, ignore_errors=True)


def keep_logs(temp_dir: Path, target: Path) -> None:
    """Copy the last 256 KiB of the newest 40 log files of a node's Ray session into `target`.

    Bounded because nodes come and go all day; without it, what a node's workers wrote would go with it.
    """
    logs = [path for path in temp_dir.glob("session_2*/logs/*") if path.is_file() and path.stat().st_size]
    # Workers first: theirs is what a user looks for.
    logs.sort(key=lambda path: (not path.name.startswith("worker-"), -path.stat().st_mtime))
    for path in logs[:_KEPT_FILES_PER_NODE]:
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("rb") as source:
            source.seek(max(0, path.stat().st_size - _KEPT_BYTES_PER_FILE))
            (target / path.name).write_bytes(source.read(_KEPT_BYTES_PER_FILE))
