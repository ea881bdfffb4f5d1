"""Whether our ingress can be put on a cluster that somebody else started: what is there, and what is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eagleray import __version__
from eagleray.errors import ClusterError

_LOCAL_FILES = ("sqlite:", "file:", "/")


@dataclass(frozen=True)
class NodeFacts:
    """What a process on one node says."""

    name: str
    address: str
    version: str | None = None
    """Of our package there; None where it cannot be imported."""
    trouble: str = ""
    """Why it cannot, or why the node did not answer."""
    sees_storage: bool = True
    """Whether a file that was just written to EAGLERAY_STORAGE is there."""
    asks_for_token: bool = True
    """Whether Ray's own ports there want one."""
    profile: str = ""
    """The recovery profile that Ray was started with; empty where it was started without one."""


@dataclass(frozen=True)
class ServeFacts:
    """Serve, as it runs already."""

    host: str
    port: int
    location: str
    routes: Mapping[str, str]
    """Applications by their route."""


def warning(nodes: Sequence[NodeFacts]) -> str:
    """What to say of nodes that will do, and are not as they should be; empty where there is nothing."""
    if not (open_nodes := [node.name for node in nodes if not node.asks_for_token]):
        return ""
    return (
        f"warning: Ray on {', '.join(open_nodes)} asks for no token, so its own ports and those of Serve's "
        "replicas take pickles, which is to say code, from whoever reaches them; start Ray with "
        "RAY_AUTH_MODE=token"
    )


def check_nodes(nodes: Sequence[NodeFacts], *, storage_url: str, tracking_uri: str) -> None:
    """Raises: ClusterError with the first thing that is missing, and what to do about it."""
    for node in nodes:
        if node.version is None:
            raise ClusterError(
                f"node {node.name} ({node.address}): eagleray cannot be imported there ({node.trouble}); "
                f"install eagleray[platform]=={__version__} on every node, into the Python that runs Ray"
            )
    if others := [node for node in nodes if node.version != __version__]:
        found = ", ".join(f"{node.name} has {node.version}" for node in others)
        raise ClusterError(
            f"the nodes do not all have eagleray {__version__}, as is installed here: {found}; install the "
            "same version on every node"
        )
    num_hosts = len({node.address for node in nodes})
    if num_hosts == 1:
        return
    if blind := [node.name for node in nodes if not node.sees_storage]:
        raise ClusterError(
            f"EAGLERAY_STORAGE {storage_url}: a file written to it is not there on {', '.join(blind)}; every "
            "node must read packages: set it to a shared folder or an object store (s3://…)"
        )
    if tracking_uri.startswith(_LOCAL_FILES) or "://" not in tracking_uri:
        raise ClusterError(
            f"EAGLERAY_TRACKING_URI {tracking_uri} is a file of one machine, and the cluster has "
            f"{num_hosts}; run `mlflow server` where all of them reach it, and set EAGLERAY_TRACKING_URI to "
            "its http://…"
        )


def check_serve(found: ServeFacts | None, *, host: str, port: int, our_app: str) -> None:
    """Raises: ClusterError where Serve runs in a way that leaves no room for the ingress."""
    if found is None:
        return
    if (found.host, found.port) != (host, port) or found.location == "Disabled":
        raise ClusterError(
            f"Serve runs on this cluster already, at {found.host}:{found.port} (proxies: {found.location}), "
            f"and the ingress was to be at {host}:{port}; give --host {found.host} --port {found.port} to "
            "share it, where its proxies are not disabled, or stop it with `serve shutdown`"
        )
    other = found.routes.get("/")
    if other is not None and other != our_app:
        raise ClusterError(
            f"the application {other!r} has the route / on this cluster, which the ingress needs; deploy it "
            "under another prefix, or delete it"
        )
