"""Whether our ingress can be put on a cluster that somebody else started: what is there, and what is not."""

from __future__ import annotations

from collections.abc import Sequence
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
    """On which nodes its proxies are."""


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


def check_serve(found: ServeFacts | None, *, port: int) -> None:
    """Raises: ClusterError where Serve, as it runs, has the ingress's port."""
    if found is None or found.location == "Disabled" or found.port != port:
        return
    raise ClusterError(
        f"Serve's proxies on this cluster are at {found.host}:{found.port}, and the ingress needs a port of "
        "its own: give another one with --port"
    )
