"""What `up` writes before anything runs: ports, folders, the token, the autoscaler's and the head's plans."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from eagleray.capacity.placement import NodeCapacity
from eagleray.cluster import node_types, ports, processes, settings, state
from eagleray.cluster.files import remove_tree, write_json
from eagleray.cluster.state import ClusterState
from eagleray.errors import ClusterError
from eagleray.specs import LocalSpec

PROVIDER = "eagleray.cluster.provider_ray260.LocalNodeProvider"
_PORTS = (
    "gcs", "dashboard", "agent_http", "agent_grpc", "metrics", "runtime_env_agent", "node_manager",
    "object_manager", "autoscaler_metrics", "dashboard_metrics",
)  # fmt: skip
_RUNTIME_PREFIX = "er-"
_LONGEST_RUNTIME_DIR = 34
"""A node's own folder adds 8; Ray's sockets in it then end at byte 107, which is all that Unix allows."""


def prepare(
    name: str, spec: LocalSpec, types: list[NodeCapacity], helpers: Mapping[str, Sequence[str]]
) -> ClusterState:
    """Make the folders, the token and all files of a cluster that is about to start.

    Args:
        name: Of the cluster.
        spec: How it is to be.
        types: Its worker node types.
        helpers: Python arguments by role; the supervisor runs each once jobs are accepted, until it succeeds.

    Raises:
        ClusterError: a port is in use, the temp folder's path is too long, or the name was taken just now.
    """
    import yaml

    wanted = _wanted_ports(spec)
    others = [state.read(other) for other in state.names()]
    taken = [port for other in others if other for port in other.ports.values()]
    free = ports.free_ports(spec.host, _PORTS, taken=[*taken, *wanted.values()])
    if spec.serving.enabled and "ingress" not in wanted:
        used = [*taken, *wanted.values(), *free.values()]
        free |= ports.free_ports(spec.serving.host, ["ingress"], taken=used)
    if spec.serving.enabled:
        used = [*taken, *wanted.values(), *free.values()]
        free |= ports.free_ports(state.LOOPBACK, ["serve"], taken=used)
    settings.make_home()
    settings.clusters_dir().mkdir(mode=0o700, exist_ok=True)
    cluster = ClusterState(
        name=name,
        marker=secrets.token_hex(12),
        host=spec.host,
        ports=free | wanted,
        runtime_dir=_make_runtime_dir(),
        starter=processes.this_process("up"),
        created_s=time.time(),
        ingress_host=spec.serving.host,
        is_ingress_tls=spec.serving.tls_cert is not None,
    )
    try:
        _write_files(cluster, spec, types, helpers, yaml.safe_dump)
    except BaseException:
        remove_tree(cluster.runtime_dir)
        raise
    return cluster


def _wanted_ports(spec: LocalSpec) -> dict[str, int]:
    """The ports that the spec names. Raises: ClusterError where one is in use."""
    asked = [("dashboard", "dashboard_port", spec.host, spec.dashboard_port)]
    if spec.serving.enabled:
        asked.append(("ingress", "serving.port", spec.serving.host, spec.serving.port))
    for _, key, host, port in asked:
        if port and not ports.is_free(host, port):
            raise ClusterError(f"{key} {port} of {host} is in use; choose another, or 0 for any")
    return {name: port for name, _, _, port in asked if port}


def _write_files(
    cluster: ClusterState,
    spec: LocalSpec,
    types: list[NodeCapacity],
    helpers: Mapping[str, Sequence[str]],
    dump: Callable[[object], str],
) -> None:
    """Fill a new folder, then give it its name: of two `up`s at once one wins; none sees half a cluster."""
    folder = Path(tempfile.mkdtemp(prefix=".new-", dir=settings.clusters_dir()))
    try:
        for part in ("nodes", "logs"):
            (folder / part).mkdir(mode=0o700)
        write_json(folder / "state.json", state.to_json(cluster))
        write_json(folder / "head_plan.json", _head_plan(spec, types))
        write_json(folder / "helpers.json", {role: list(arguments) for role, arguments in helpers.items()})
        write_json(folder / "serving.json", spec.serving.model_dump(mode="json"))
        config = node_types.autoscaling_config(
            types, spec, cluster_name=cluster.name, module=PROVIDER, directory=cluster.directory
        )
        (folder / "autoscaling.yaml").write_text(dump(config))
        # Ray itself would write it readable for all.
        descriptor = os.open(folder / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        for part in ("gcs", "tmp"):
            (cluster.runtime_dir / part).mkdir(mode=0o700)
        try:
            folder.rename(cluster.directory)
        except OSError:
            raise ClusterError(
                f"cluster {cluster.name!r} was started by someone else just now; see `eagleray status`"
            ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _head_plan(spec: LocalSpec, types: list[NodeCapacity]) -> Mapping[str, object]:
    return {
        "memory_mib": spec.head_memory_mib,
        "object_store_mib": spec.object_store_mib,
        "max_nodes": spec.max_nodes,
        "node_types": [asdict(node_type) for node_type in types],
    }


def _make_runtime_dir() -> Path:
    """A new 0700 folder with a short path. Raises: ClusterError where no temp folder is short enough."""
    for parent in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]):
        if len(parent) + len("/er-12345678") <= _LONGEST_RUNTIME_DIR and os.access(parent, os.W_OK):
            return Path(tempfile.mkdtemp(prefix=_RUNTIME_PREFIX, dir=parent))
    raise ClusterError(
        f"no writable temp folder with a path of at most {_LONGEST_RUNTIME_DIR - 12} characters (Unix "
        "sockets need short paths); set TMPDIR to one"
    )


def runtime_dir_of(environment: Mapping[str, str]) -> Path | None:
    """The cluster's runtime folder as one of its processes has it; None where that cannot be one of ours."""
    # Not TMPDIR: jobs may set that.
    folder = Path(environment.get("RAY_gcs_storage_path", "")).parent
    return folder if folder.is_absolute() and folder.name.startswith(_RUNTIME_PREFIX) else None
