"""`eagleray status`: processes, nodes and addresses of a local cluster, from its state on disk."""

from __future__ import annotations

from eagleray.cluster import local
from eagleray.cluster.state import DEFAULT_NAME
from eagleray.workflows.words import clock


def status(name: str = DEFAULT_NAME) -> local.ClusterStatus:
    """The cluster called `name` as it is now. Raises: ClusterNotRunning."""
    return local.status(name)


def as_text(found: local.ClusterStatus) -> str:
    """A few plain lines for the terminal."""
    ready = "ready" if found.is_ready else "NOT READY: the job API does not answer"
    lines = [
        f"cluster {found.name}: {ready}, up {clock(found.uptime_s)}",
        f"  dashboard {found.dashboard_url}   GCS {found.gcs_address}",
        f"  ingress   {_ingress(found)}",
        f"  logs      {found.logs_dir}",
        "processes:",
        *(f"  {process.role:<12} {process.pid:>8}  {_life(alive)}" for process, alive in found.processes),
        f"worker nodes: {len(found.nodes) or 'none (they start when a job needs them)'}",
    ]
    for node in found.nodes:
        resources = ", ".join(f"{key} {_amount(key, value)}" for key, value in sorted(node.resources.items()))
        lines.append(f"  {node.node_id}  {node.node_type:<12} {resources}  up {clock(node.uptime_s)}")
    return "\n".join(lines)


def _ingress(found: local.ClusterStatus) -> str:
    if found.ingress_url is None:
        return "none: serving.enabled is false in this cluster's spec"
    if found.is_ingress_ready:
        return found.ingress_url
    return f"{found.ingress_url} (does not answer yet; see {found.logs_dir / 'serving.log'})"


def _life(is_alive: bool) -> str:
    return "running" if is_alive else "ENDED"


def _amount(key: str, value: float) -> str:
    return f"{value / 2**30:.1f} GiB" if key == "memory" else f"{value:g}"
