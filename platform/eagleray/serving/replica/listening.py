"""Where a replica's link server listens: by this node's address as Ray knows it, in a folder of its user."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from eagleray.errors import ServiceError
from eagleray.serving.link.calls import Handler
from eagleray.serving.link.server import LinkServer
from eagleray.serving.link.sockets import ReplicaAddress

METADATA = "link"
"""Of Serve's `record_replica_metadata`: the replica's address."""
FRAME_MARGIN_BYTES = 64 * 1024
_GROWTH = 4
"""A value of JSON takes two bytes and more, one of a tensor eight at most."""
_log = logging.getLogger(__name__)


def frame_bytes(max_body_bytes: int) -> int:
    """The largest frame where bodies of so many bytes are taken."""
    return _GROWTH * max_body_bytes + FRAME_MARGIN_BYTES


def serve(handler: Handler, key: bytes, *, max_frame_bytes: int) -> tuple[LinkServer, ReplicaAddress]:
    """A server that listens, and where. Raises: ServiceError."""
    host, node = here()
    name = f"eagleray-link-{os.geteuid()}"
    for folder in dict.fromkeys((tempfile.gettempdir(), "/tmp")):
        try:
            return _serve(handler, key, Path(folder, name), host, node, max_frame_bytes)
        except ServiceError as error:  # its path is too long, or somebody else has made that folder
            _log.warning("links: %s; another folder is used", error)
    return _serve(handler, key, Path(tempfile.mkdtemp(prefix="er-", dir="/tmp")), host, node, max_frame_bytes)


def _serve(  # noqa: PLR0917
    handler: Handler, key: bytes, folder: Path, host: str, node: str, max_frame_bytes: int
) -> tuple[LinkServer, ReplicaAddress]:
    server = LinkServer(handler, key, folder=folder, host=host, max_frame_bytes=max_frame_bytes, node=node)
    return server, server.start()


def here() -> tuple[str, str]:
    """This node's address as Ray knows it, and what tells machines apart that do not share their files.

    Not Ray's id of the node: all nodes of a local cluster are on one machine, and reach each other's sockets.
    """
    import ray

    host = ray.util.get_node_ip_address() if ray.is_initialized() else "127.0.0.1"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return host, f"{boot} {os.readlink('/proc/self/ns/mnt')}"
