"""`up`, `down`, `status` of a local cluster: state on disk, one supervisor, ready when jobs are accepted."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

from eagleray.capacity.placement import NodeCapacity
from eagleray.cluster import environment, node_types, nodes, preparation, processes, state
from eagleray.cluster.files import remove_tree
from eagleray.cluster.probing import answers
from eagleray.cluster.processes import Process
from eagleray.cluster.state import ClusterState
from eagleray.errors import ClusterError, ClusterNotRunning
from eagleray.specs import LocalSpec

Say = Callable[[str], None]
_READY_TIMEOUT_S = 60.0


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
    ingress_url: str | None
    """None where the cluster was started without serving."""
    is_ingress_ready: bool


def up(
    name: str,
    spec: LocalSpec,
    *,
    helpers: Mapping[str, Sequence[str]] = MappingProxyType({}),
    say: Say = print,
) -> ClusterState:
    """Start the local cluster `name` and return when it accepts jobs.

    `helpers`, Python arguments by role, are run by the cluster itself from then on, each until it succeeds,
    with the cluster's folder as their last argument.

    Whatever goes wrong, Ctrl-C included, ends and removes all that was started.

    Raises:
        ClusterError: one of that name runs already, a port is in use, or Ray did not start.
    """
    types = node_types.read_types(spec)
    _clear_stale(name, say)
    try:
        return _start(name, spec, types, helpers, say)
    except _HeadFailedError as error:
        # Ray gives up after 30 s of waiting for its raylet, which a loaded machine can take (2.60).
        say(f"Ray did not start ({error}); trying once more")
    try:
        return _start(name, spec, types, helpers, say)
    except _HeadFailedError as error:
        raise ClusterError(f"cluster {name!r} did not start: {error}") from None


class _HeadFailedError(Exception):
    """The head did not come up."""


def _start(
    name: str, spec: LocalSpec, types: list[NodeCapacity], helpers: Mapping[str, Sequence[str]], say: Say
) -> ClusterState:
    """Start a cluster once; whatever goes wrong, nothing of it stays. Raises: _HeadFailedError."""
    try:
        cluster = preparation.prepare(name, spec, types, helpers)
        _await_ready(cluster, _start_supervisor(cluster, spec), say)
        state.accepts_jobs_path(cluster.directory).touch()  # the helpers have waited for it
        return cluster
    except BaseException:
        mine = state.read(name)
        if mine and mine.starter == processes.this_process("up"):
            with processes.undisturbed():
                say(f"stopping what was started for cluster {name!r}")
                _remove(mine)
        raise


def _clear_stale(name: str, say: Say) -> None:
    """Remove what a cluster of that name left behind. Raises: ClusterError where it still runs."""
    cluster = state.read(name)
    if cluster is None:
        if (reason := state.damage(name)) is not None:
            _clear_damaged(name, reason, say)
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


def _clear_damaged(name: str, reason: str, say: Say) -> None:
    """Remove what is left of a cluster whose state cannot be read. Raises: ClusterError where it runs."""
    if found := _search(name):
        raise ClusterError(
            f"cluster {name!r} runs ({len(processes.belonging(found[0].marker))} processes), but its state "
            f"cannot be read ({reason}); `eagleray down --name {name}` ends them and removes it, or choose "
            "another --name"
        )
    say(f"the state of cluster {name!r} cannot be read ({reason}), and no process of it runs: removing it")
    remove_tree(state.directory(name))


def _search(name: str) -> list[ClusterState]:
    """What can be told of the cluster `name` from its processes alone: marker and runtime folder."""
    folders: dict[str, Path | None] = {}
    for one in processes.running(state.directory(name) / "token"):
        marker = one[processes.MARKER]
        folders[marker] = folders.get(marker) or preparation.runtime_dir_of(one)
    return [
        ClusterState(name, marker, "", {}, folder or state.directory(name), Process(0, 0), 0.0)
        for marker, folder in folders.items()
    ]


def _start_supervisor(cluster: ClusterState, spec: LocalSpec) -> subprocess.Popen[bytes]:
    """Start the supervisor in a session of its own, so that Ctrl-C in this terminal does not reach it."""
    with (cluster.logs_dir / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "eagleray.cluster.supervisor", str(cluster.directory)],
            env=environment.of_cluster(cluster, profile=spec.profile, extra=spec.env),
            cwd=cluster.runtime_dir,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _await_ready(cluster: ClusterState, supervisor: subprocess.Popen[bytes], say: Say) -> None:
    """Wait until the job API and the head's agent answer. Raises: _HeadFailedError."""
    began = time.monotonic()
    say(f"starting cluster {cluster.name!r}")
    while not (_is_supervised(cluster) and is_ready(cluster)):
        waited = time.monotonic() - began
        head_failed = supervisor.poll() is not None
        if head_failed or waited > _READY_TIMEOUT_S:
            reason = "its head ended" if head_failed else f"no answer in {_READY_TIMEOUT_S:.0f} s"
            raise _HeadFailedError(
                f"{reason}; its log ends with:\n{_tail(cluster.logs_dir / 'supervisor.log')}"
            )
        time.sleep(0.1)
    say(f"ready after {time.monotonic() - began:.1f} s: dashboard {cluster.dashboard_url}")


def _is_supervised(cluster: ClusterState) -> bool:
    """Whether the supervisor knows the head's processes: before, it could not restart them."""
    return len(cluster.processes()) > 1


def is_ready(cluster: ClusterState, *, timeout_s: float = 2.0) -> bool:
    """Whether a job would be accepted: without the agent the job API answers 500 to every submission."""
    agent = f"http://{cluster.host}:{cluster.ports['agent_http']}/api/local_raylet_healthz"
    jobs = f"{cluster.dashboard_url}/api/jobs/"
    return all(answers(url, token=cluster.token, timeout_s=timeout_s) for url in (jobs, agent))


def is_ingress_ready(cluster: ClusterState) -> bool:
    """Whether the ingress answers: some seconds after jobs are accepted."""
    return cluster.ingress_url is not None and answers(f"{cluster.ingress_url}/v2/health/live")


def _tail(path: Path, num_lines: int = 12) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-num_lines:])
    except OSError:
        return "(no log)"


def down(name: str, *, say: Say = print) -> DownReport:
    """End every process of the cluster and remove its folders; works after any crash.

    Raises:
        ClusterNotRunning: there is nothing of that name, neither running nor left behind.
        ClusterError: a process does not end, or a folder cannot be deleted; `down` can be run again.
    """
    began = time.monotonic()
    cluster = state.read(name)
    reason = state.damage(name)
    if cluster is None and reason is None:
        state.find(name)  # raises, with what to do
        raise ClusterNotRunning(name)
    if reason is not None:
        say(f"the state of cluster {name!r} cannot be read ({reason}); looking for its processes instead")
    with processes.undisturbed():
        ended = [process for found in ([cluster] if cluster else _search(name)) for process in _remove(found)]
        if cluster is None:  # else it is gone, and an `up` of that name may have made it anew
            remove_tree(state.directory(name))
    report = DownReport(name, len(ended), time.monotonic() - began)
    say(f"cluster {name!r} is down: {report.num_processes} processes ended in {report.seconds:.1f} s")
    return report


def _remove(cluster: ClusterState) -> list[Process]:
    """End the cluster's processes and delete its folders; returns what was ended. Raises: ClusterError."""
    for process in cluster.processes():
        if process.role == "supervisor":
            processes.send(process, processes.signal.SIGKILL)  # or it would restart what we end
    ended = processes.sweep(lambda: processes.belonging(cluster.marker))
    if left := processes.belonging(cluster.marker):
        pids = ", ".join(str(process.pid) for process in left)
        raise ClusterError(
            f"cluster {cluster.name!r}: these processes do not end, even by SIGKILL: {pids} (waiting for a "
            f"device or a file system?); see `ps -o pid,stat,wchan:32,args -p {pids}`, then run "
            f"`eagleray down --name {cluster.name}` again"
        )
    try:
        remove_tree(cluster.runtime_dir)
        remove_tree(cluster.directory)  # last: `down` finds the cluster by it
    except ClusterError as error:
        raise ClusterError(
            f"cluster {cluster.name!r}: its processes have ended, but {error}; see to that, then run "
            f"`eagleray down --name {cluster.name}` again"
        ) from None
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
        ingress_url=cluster.ingress_url,
        is_ingress_ready=is_ingress_ready(cluster),
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
