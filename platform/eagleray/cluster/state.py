"""What is on disk about a local cluster: found by name, without ray, torch or a running cluster.

<home>/clusters/<name>/   0700
    state.json            written once, before anything starts
    token                 0600, Ray's authentication token
    admin.key             0600, the first admin key of the ingress
    serving.json          how the ingress is to be started, where it is
    head_plan.json        what the head gets, and the worker node types
    helpers.json          what the supervisor starts once jobs are accepted
    accepts_jobs          there since they are
    head.json             processes of the head as it was first started
    processes.json        supervisor and head processes now: role, pid, start time
    nodes/<id>.json       each worker node: type, resources, tags, pid and start time
    nodes/.<id>.plan      the same, from before its process was started
    logs/                 supervisor, nodes, and the worker logs of nodes that are gone
    autoscaling.yaml      what Ray's autoscaler reads
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from eagleray.cluster import settings
from eagleray.cluster.files import read_json
from eagleray.cluster.processes import Process
from eagleray.errors import AuthError, ClusterError, ClusterNotRunning, InputError

DEFAULT_NAME = "local"
LOOPBACK = "127.0.0.1"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")


@dataclass(frozen=True)
class ClusterState:
    """A local cluster as `up` planned it; whether it runs is asked of its processes."""

    name: str
    marker: str
    """Value of the environment variable that every process of the cluster carries."""
    host: str
    ports: Mapping[str, int]
    runtime_dir: Path
    """Short path under the temp folder: Ray's sockets (their paths may have 107 bytes)."""
    starter: Process
    """The process that ran `up`."""
    created_s: float
    """Seconds since the epoch."""
    ingress_host: str = LOOPBACK
    is_ingress_tls: bool = False

    @property
    def directory(self) -> Path:
        """Its folder under the home."""
        return directory(self.name)

    @property
    def token_path(self) -> Path:
        """The file with Ray's authentication token."""
        return self.directory / "token"

    @property
    def token(self) -> str:
        """Ray's authentication token. Raises: AuthError where its file is gone or cannot be read."""
        try:
            return self.token_path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise AuthError(
                f"the token of cluster {self.name!r} cannot be read: {self.token_path}: {reason}; "
                f"put it back, or `eagleray down --name {self.name}` and start the cluster anew"
            ) from None

    @property
    def admin_key_path(self) -> Path:
        """The file with the first admin key of the ingress; there once the controller has started."""
        return self.directory / "admin.key"

    @property
    def ingress_url(self) -> str | None:
        """Where models are called; None where the cluster was started without serving."""
        if "ingress" not in self.ports:
            return None
        scheme = "https" if self.is_ingress_tls else "http"
        return f"{scheme}://{self.ingress_host}:{self.ports['ingress']}"

    @property
    def nodes_dir(self) -> Path:
        """The folder with one folder per worker node."""
        return self.directory / "nodes"

    @property
    def logs_dir(self) -> Path:
        """The folder of logs that outlive their nodes."""
        return self.directory / "logs"

    @property
    def gcs_address(self) -> str:
        """What `ray.init` connects to, as host:port."""
        return f"{self.host}:{self.ports['gcs']}"

    @property
    def dashboard_url(self) -> str:
        """Ray's dashboard and job API."""
        return f"http://{self.host}:{self.ports['dashboard']}"

    def processes(self) -> list[Process]:
        """Supervisor and head processes, alive or not, as the supervisor wrote them down."""
        return [Process(**entry) for entry in read_json(self.directory / "processes.json") or []]

    @property
    def is_running(self) -> bool:
        """Whether the supervisor or a part of the head is alive."""
        return any(process.is_alive for process in self.processes())


def directory(name: str) -> Path:
    """The folder of the cluster called `name`. Raises: InputError where that cannot be a name."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"cluster name {name!r}: use 1 to 32 of a-z, 0-9 and -, for instance {DEFAULT_NAME!r}"
        )
    return settings.clusters_dir() / name


def accepts_jobs_path(folder: Path) -> Path:
    """A file that appears in a cluster's folder when the first `up` has seen it accept jobs."""
    return folder / "accepts_jobs"


def to_json(state: ClusterState) -> dict[str, object]:
    """`state` as a JSON object."""
    return {**asdict(state), "ports": dict(state.ports), "runtime_dir": str(state.runtime_dir)}


def read(name: str) -> ClusterState | None:
    """The state on disk, running or stale; None where there is none that can be read."""
    return read_path(directory(name))


def read_path(folder: Path) -> ClusterState | None:
    """The state in a cluster's folder; None where there is none that can be read."""
    try:
        return _parse(folder / "state.json")
    except _UNREADABLE:
        return None


def damage(name: str) -> str | None:
    """Why the state in the folder of the cluster `name` cannot be read; None where it can, or has no folder.

    Its processes may run all the same: whoever removes the folder has to look for them (`processes.running`).
    """
    path = directory(name) / "state.json"
    if not path.parent.exists():
        return None
    try:
        _parse(path)
    except KeyError as error:
        return f"{path}: no {error}"
    except _UNREADABLE as error:
        return f"{path}: {getattr(error, 'strerror', None) or error}"
    return None


_UNREADABLE = (OSError, ValueError, TypeError, KeyError)


def _parse(path: Path) -> ClusterState:
    found = json.loads(path.read_text())
    starter, runtime_dir = Process(**found["starter"]), Path(found["runtime_dir"])
    if not (isinstance(found["marker"], str) and found["marker"]):
        raise ValueError("its marker is no text")  # by which its processes are found
    if not runtime_dir.is_absolute():
        raise ValueError("its runtime folder has no absolute path")  # `down` deletes that folder
    return ClusterState(**{**found, "runtime_dir": runtime_dir, "starter": starter})


def names() -> list[str]:
    """Names of all clusters with a state on disk."""
    return sorted(path.parent.name for path in settings.clusters_dir().glob("*/state.json"))


def find(name: str = DEFAULT_NAME) -> ClusterState:
    """The running cluster called `name`.

    Raises:
        ClusterNotRunning: there is none; the message says how to start one, and which others run.
        ClusterError: its state cannot be read.
    """
    state = read(name)
    if (reason := damage(name)) is not None:
        raise ClusterError(
            f"cluster {name!r}: its state cannot be read ({reason}); `eagleray down --name {name}` finds its "
            "processes by their environment, ends them, and removes what is left"
        )
    if state is not None and state.is_running:
        return state
    if state is not None:
        raise ClusterNotRunning(
            f"cluster {name!r} is not running: its processes have ended (state in {state.directory}); "
            f"`eagleray up --name {name}` starts it anew, `eagleray down --name {name}` removes what is left"
        )
    others = [other for other in names() if (found := read(other)) and found.is_running]
    hint = f"; running: {', '.join(others)} (choose with --name)" if others else ""
    raise ClusterNotRunning(
        f"no cluster {name!r} is running (looked in {settings.clusters_dir()}); start it with "
        f"`eagleray up --name {name}`{hint}"
    )


def ingress_url(state: ClusterState) -> str:
    """The ingress's address. Raises: ClusterError where the cluster was started without one."""
    if state.ingress_url is None:
        raise ClusterError(
            f"cluster {state.name!r} was started without serving (serving.enabled = false); start it anew "
            "with serving to reach models"
        )
    return state.ingress_url


def admin_key_path(state: ClusterState) -> Path:
    """The file with the ingress's admin key. Raises: ClusterError where it has not written it yet."""
    if not state.admin_key_path.exists():
        raise ClusterError(
            f"the ingress of cluster {state.name!r} has not started yet; `eagleray status` says when, and "
            f"the reason is in {state.logs_dir}"
        )
    return state.admin_key_path


def environment(state: ClusterState) -> dict[str, str]:
    """Variables with which Ray's own commands and `ray.init` reach the cluster."""
    exports = {
        "RAY_ADDRESS": state.gcs_address,
        "RAY_API_SERVER_ADDRESS": state.dashboard_url,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(state.token_path),
    }
    if is_loopback(state.host):
        # Without it Ray replaces 127.0.0.1 by another interface's address, and waits 40 s for that (2.60).
        exports["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return exports


def is_loopback(host: str) -> bool:
    """Whether `host` can be no other machine than this one, whatever a name server says."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
