"""How the head's raylet is started again after a crash (Ray 2.60): as a new node, on the old ports and paths.

To the GCS a node id that died is dead for ever, and the raylet does not bind over a socket file that exists.
Jobs whose drivers were on the head are lost with it; the cluster, its worker nodes and new jobs go on.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

_NODE_ID = "--node_id="
_SOCKETS = ("--raylet_socket_name=", "--store_socket_name=")
_NODE_ID_BYTES = 28


def renew(arguments: Sequence[str]) -> list[str]:
    """The raylet's command line with a fresh node id, also for its agents; deletes its old socket files.

    Raises:
        ValueError: the command line has no node id; Ray has changed it.
    """
    old = _value(arguments, _NODE_ID)
    if old is None:
        raise ValueError(f"the raylet was started without {_NODE_ID}; Ray has changed its command line")
    for prefix in _SOCKETS:
        if path := _value(arguments, prefix):
            Path(path).unlink(missing_ok=True)
    new = secrets.token_hex(_NODE_ID_BYTES)
    return [argument.replace(old, new) for argument in arguments]


def _value(arguments: Sequence[str], prefix: str) -> str | None:
    return next((argument[len(prefix) :] for argument in arguments if argument.startswith(prefix)), None)
