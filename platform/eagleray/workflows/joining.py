"""This process as a driver of a Ray cluster that somebody else started: for `attach`, and to take it back."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from eagleray.cluster.names import NAMESPACE
from eagleray.errors import ClusterError

_CONNECT_S = 5.0


@contextmanager
def joined(address: str, env: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """This process as a driver of the cluster. Raises: ClusterError where it cannot be.

    What it starts there, and what that starts, has the variables of `env`.
    """
    if "RAY_AUTH_MODE" not in os.environ and _has_token():
        # `ray start` turns tokens on where it finds one, and a driver does not (2.60).
        os.environ["RAY_AUTH_MODE"] = "token"
    _check_reachable(address)
    import ray

    try:
        ray.init(
            address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": dict(env)} if env else None,
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:400]
        raise ClusterError(
            f"cannot join the Ray cluster at {address}: {reason}; run this on a machine of the cluster, give "
            "its GCS address (host:6379), and set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH where it has a token"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises: ClusterError where nobody listens: Ray's own attempt would end this process (2.60)."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"nobody answers at {address} ({error}); give the address of the cluster's GCS, as host:6379, "
            "and run this on a machine of the cluster"
        ) from None


def _has_token() -> bool:
    names = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return any(name in os.environ for name in names) or Path("~/.ray/auth_token").expanduser().exists()
