"""`up`, `down`, `status` of a local cluster: state on disk, one supervisor, ready when jobs are accepted."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from eagleray.cluster import environment, node_types, nodes, ports, processes, settings, state
from eagleray.cluster.files import remove_tree, write_json
from eagleray.cluster.placement import NodeCapacity
from eagleray.cluster.processes import Process
from eagleray.cluster.state import ClusterState
from eagleray.errors import ClusterError, ClusterNotRunning
from eagleray.specs import LocalSpec

Say = Callable[[str], None]
PROVIDER = "eagleray.cluster.provider_ray260.LocalNodeProvider"
_PORTS = (
    "gcs", "dashboard", "agent_http", "agent_grpc", "metrics", "runtime_env_agent", "node_manager",
    "object_manager", "autoscaler_metrics", "dashboard_metrics",
)  # fmt: skip
_READY_TIMEOUT_S = 60.0
_LONGEST_RUNTIME_DIR = 34
"""A node's own folder adds 8; Ray's sockets in it then end at byte 107, which is all that Unix allows."""


@dataclass(frozen=True)
class DownReport:
    """What `down` did."""

    name: str
    num_processes: int
    seconds: float


@dataclass(frozen=True)
class ClusterStatus:
    """A local cluster as it is now."""

    name: str
    is_ready: bool
    """The job API answers and accepts the token."""
    dashboard_url: str
    gcs_address: str
    uptime_s: float
    processes: list[tuple[Process, bool]]
    """Supervisor and head, each with whether it is alive."""
    nodes: list[nodes.Node]
    """Worker nodes that run."""
    logs_dir: Path


def up(name: str, spec: LocalSpec, *, say: Say = print) -> ClusterState:
    """Start the local cluster `name` and return when it accepts jobs.

    Whatever goes wrong, Ctrl-C included, ends and removes all that was started.

    Raises:
        ClusterError: one of that name runs already, a port is in use, or Ray did not start.
    """
    types = node_types.read_types(spec)
    _clear_stale(name, say)
    try:
        return _start(name, spec, types, say)
    except _HeadFailedError as error:
        # Ray gives up after 30 s of waiting for its raylet, which a loaded machine can take (2.60).
        say(f"Ray did not start ({error}); trying once more")
    try:
        return _start(name, spec, types, say)
    except _HeadFailedError as error:
        raise ClusterError(f"cluster {name!r} did not start: {error}") from None


class _HeadFailedError(Exception):
    """The head did not come up."""


def _start(name: str, spec: LocalSpec, types: list[NodeCapacity], say: Say) -> ClusterState:
    """Start a cluster once; whatever goes wrong, nothing of it stays. Raises: _HeadFailedError."""
    try:
        cluster = _prepare(name, spec, types)
        _start_supervisor(cluster, spec)
        _await_ready(cluster, say)
        return cluster
    except BaseException:
        mine = state.read(name)
        if mine and mine.starter == processes.this_process("up"):
            say(f"stopping what was started for cluster {name!r}")
            _remove(mine)
        raise


def _clear_stale(name: str, say: Say) -> None:
    """Remove what a cluster of that name left behind. Raises: ClusterError where it still runs."""
    cluster = state.read(name)
    if cluster is None:
        if state.directory(name).exists():
            remove_tree(state.directory(name))
        return
    alive = processes.belonging(cluster.marker)
    if not _is_supervised(cluster) and cluster.starter.is_alive:
        raise ClusterError(
            f"cluster {name!r} is being started by process {cluster.starter.pid}; wait for it, or run "
            f"`eagleray down --name {name}`"
        )
    if cluster.is_running:
        raise ClusterError(
            f"cluster {name!r} runs already ({len(alive)} processes, dashboard {cluster.dashboard_url}); see "
            f"it with `eagleray status --name {name}`, stop it with `eagleray down --name {name}`, or choose "
            "another --name"
        )
    say(f"cleaning up after cluster {name!r}, which ended without `eagleray down`")
    _remove(cluster)


def _prepare(name: str, spec: LocalSpec, types: list[NodeCapacity]) -> ClusterState:
    """Make the folders, the token and all files of a cluster that is about to start."""
    import yaml

    wanted = {} if spec.dashboard_port == 0 else {"dashboard": spec.dashboard_port}
    if wanted and not ports.is_free(spec.host, spec.dashboard_port):
        raise ClusterError(
            f"dashboard_port {spec.dashboard_port} of {spec.host} is in use; choose another, or 0 for any"
        )
    others = [state.read(other) for other in state.names()]
    taken = [port for other in others if other for port in other.ports.values()]
    free = ports.free_ports(spec.host, _PORTS, taken=[*taken, *wanted.values()])
    settings.home().mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.clusters_dir().mkdir(mode=0o700, exist_ok=True)
    cluster = ClusterState(
        name=name,
        marker=secrets.token_hex(12),
        host=spec.host,
        ports=free | wanted,
        runtime_dir=_make_runtime_dir(),
        starter=processes.this_process("up"),
        created_s=time.time(),
    )
    try:
        _write_files(cluster, spec, types, yaml.safe_dump)
    except BaseException:
        remove_tree(cluster.runtime_dir)
        raise
    return cluster


def _write_files(
    cluster: ClusterState, spec: LocalSpec, types: list[NodeCapacity], dump: Callable[[object], str]
) -> None:
    """Fill a new folder, then give it its name: of two `up`s at once one wins; none sees half a cluster."""
    folder = Path(tempfile.mkdtemp(prefix=".new-", dir=settings.clusters_dir()))
    try:
        for part in ("nodes", "logs"):
            (folder / part).mkdir(mode=0o700)
        write_json(folder / "state.json", state.to_json(cluster))
        write_json(folder / "head_plan.json", _head_plan(spec, types))
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
            return Path(tempfile.mkdtemp(prefix="er-", dir=parent))
    raise ClusterError(
        f"no writable temp folder with a path of at most {_LONGEST_RUNTIME_DIR - 12} characters (Unix "
        "sockets need short paths); set TMPDIR to one"
    )


def _start_supervisor(cluster: ClusterState, spec: LocalSpec) -> None:
    """Start the supervisor in a session of its own, so that Ctrl-C in this terminal does not reach it."""
    with (cluster.logs_dir / "supervisor.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "eagleray.cluster.supervisor", str(cluster.directory)],
            env=environment.of_cluster(cluster, profile=spec.profile, extra=spec.env),
            cwd=cluster.runtime_dir,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _await_ready(cluster: ClusterState, say: Say) -> None:
    """Wait until the job API and the head's agent answer. Raises: _HeadFailedError."""
    began = time.monotonic()
    say(f"starting cluster {cluster.name!r}")
    while not (_is_supervised(cluster) and is_ready(cluster)):
        waited = time.monotonic() - began
        head_failed = waited > 2 and not any(process.is_alive for process in cluster.processes())
        if head_failed or waited > _READY_TIMEOUT_S:
            reason = "its head ended" if head_failed else f"no answer in {_READY_TIMEOUT_S:.0f} s"
            raise _HeadFailedError(
                f"{reason}; its log ends with:\n{_tail(cluster.logs_dir / 'supervisor.log')}"
            )
        time.sleep(0.1)


def _is_supervised(cluster: ClusterState) -> bool:
    """Whether the supervisor knows the head's processes: before, it could not restart them."""
    return len(cluster.processes()) > 1


def is_ready(cluster: ClusterState, *, timeout_s: float = 2.0) -> bool:
    """Whether a job would be accepted: without the agent the job API answers 500 to every submission."""
    agent = f"http://{cluster.host}:{cluster.ports['agent_http']}/api/local_raylet_healthz"
    return all(_answers(cluster, url, timeout_s) for url in (f"{cluster.dashboard_url}/api/jobs/", agent))


def _answers(cluster: ClusterState, url: str, timeout_s: float) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {cluster.token}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through the user's proxy
    try:
        with opener.open(request, timeout=timeout_s) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _tail(path: Path, num_lines: int = 12) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-num_lines:])
    except OSError:
        return "(no log)"


def down(name: str, *, say: Say = print) -> DownReport:
    """End every process of the cluster and remove its folders; works after any crash.

    Raises:
        ClusterNotRunning: there is nothing of that name, neither running nor left behind.
    """
    began = time.monotonic()
    cluster = state.read(name)
    if cluster is None:
        state.find(name)  # raises, with what to do
        raise ClusterNotRunning(name)
    ended = _remove(cluster)
    return DownReport(name, len(ended), time.monotonic() - began)


def _remove(cluster: ClusterState) -> list[Process]:
    """End the cluster's processes and delete its folders; returns what was ended."""
    for process in cluster.processes():
        if process.role == "supervisor":
            processes.send(process, processes.signal.SIGKILL)  # or it would restart what we end
    ended = processes.sweep(lambda: processes.belonging(cluster.marker))
    remove_tree(cluster.runtime_dir)
    remove_tree(cluster.directory)
    return ended


def status(name: str) -> ClusterStatus:
    """The cluster's processes, nodes and addresses. Raises: ClusterNotRunning."""
    cluster = state.find(name)
    return ClusterStatus(
        name=name,
        is_ready=is_ready(cluster),
        dashboard_url=cluster.dashboard_url,
        gcs_address=cluster.gcs_address,
        uptime_s=time.time() - cluster.created_s,
        processes=[(process, process.is_alive) for process in cluster.processes()],
        nodes=[node for node in nodes.read_all(cluster.nodes_dir) if node.is_alive],
        logs_dir=cluster.logs_dir,
    )


def to_json(found: ClusterStatus) -> dict[str, object]:
    """`found` for `--json`."""
    return {
        **{key: value for key, value in asdict(found).items() if key not in ("processes", "nodes")},
        "logs_dir": str(found.logs_dir),
        "processes": [{**asdict(process), "is_alive": alive} for process, alive in found.processes],
        "nodes": [
            {
                "id": node.node_id,
                "type": node.node_type,
                "resources": dict(node.resources),
                "uptime_s": node.uptime_s,
            }
            for node in found.nodes
        ],
    }
