"""The environment of a cluster's processes: Ray's settings, the marker, and what jobs inherit."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import eagleray
from eagleray.cluster import processes, profiles, settings, state

_KEPT_RAY = ("RAY_GRAFANA_", "RAY_PROMETHEUS_", "RAY_SERVE_")
# Without bytecode caches every process start costs 1-2 s more.
_DROPPED = ("PYTHONDONTWRITEBYTECODE", "PYTHONSTARTUP", "COLUMNS", "LINES", processes.MARKER)


def of_cluster(cluster: state.ClusterState, *, profile: str, extra: Mapping[str, str]) -> dict[str, str]:
    """All variables of the supervisor, and so of everything under it; the user's other RAY_* are left out."""
    mine = {
        key: value
        for key, value in os.environ.items()
        if key not in _DROPPED and (not key.startswith("RAY_") or key.startswith(_KEPT_RAY))
    }
    if "RAY_GRAFANA_HOST" not in mine:
        mine["RAY_GRAFANA_HOST"] = "DISABLED"
    mine["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), mine.get("PATH", os.defpath)])
    if source := source_root():
        mine["PYTHONPATH"] = os.pathsep.join(filter(None, [str(source), mine.get("PYTHONPATH")]))
    exports = state.environment(cluster)
    del exports[
        "RAY_ADDRESS"
    ]  # Ray sets it for each job; in the head's own parts it would mean another cluster
    return {
        **mine,
        **exports,
        **_of_ray(cluster),
        **profiles.named(profile).environment(),
        **_of_jobs(),
        **extra,
        processes.MARKER: cluster.marker,
    }


def _of_ray(cluster: state.ClusterState) -> dict[str, str]:
    """Ray's settings; the reason stands beside each that is not obvious."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_gcs_storage": "rocksdb",  # a restarted GCS knows its nodes, actors and jobs
        "RAY_gcs_storage_path": str(cluster.runtime_dir / "gcs"),
        # From SIGTERM to SIGKILL of a stopped job: in Ray's own 3 s a driver cannot write its report.
        "RAY_JOB_STOP_WAIT_TIME_S": "20",
        "RAY_SERVE_LOG_TO_STDERR": "0",  # Serve has files of its own for what it logs
        # gRPC between Serve's processes: a request takes half as long as by actor calls, and may be large.
        "RAY_SERVE_PROXY_USE_GRPC": "1",
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**30),
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # a start on a loaded machine; Serve's own 5 s end it
        # Their defaults are fixed ports: a second cluster could not start.
        "AUTOSCALER_METRIC_PORT": str(cluster.ports["autoscaler_metrics"]),
        "DASHBOARD_METRIC_PORT": str(cluster.ports["dashboard_metrics"]),
        "TMPDIR": str(cluster.runtime_dir / "tmp"),  # a killed worker leaks pymp-* folders
        "SPT_NOENV": "1",  # setproctitle would overwrite the environment, and the marker with it
        "GLOO_SOCKET_IFNAME": interface_of(cluster.host),
        "NCCL_SOCKET_IFNAME": interface_of(cluster.host),
    }


def _of_jobs() -> dict[str, str]:
    """Where jobs read and write, as `up` saw it."""
    return {
        "EAGLERAY_HOME": str(settings.home()),
        "EAGLERAY_STORAGE": settings.storage_url(),
        "EAGLERAY_TRACKING_URI": settings.tracking_uri(),
    }


def interface_of(host: str) -> str:
    """The network interface that owns the address `host`; the loopback where it cannot be told."""
    if state.is_loopback(host):
        return "lo"
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == host for address in addresses):
            return name
    return "lo"


def source_root() -> Path | None:
    """The folder that the package is imported from; None where it is installed like any other."""
    root = Path(eagleray.__file__).resolve().parents[1]
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}
    return None if root in installed else root
