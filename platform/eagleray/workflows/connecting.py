"""A driver's way to its Ray cluster: one sentence where there is none, never a cluster of Ray's own."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable

from eagleray.errors import AuthError, ClusterNotRunning
from eagleray.workflows.stopping import Stopped, stop_on_sigterm

_TIMEOUT_S = 5.0
_ADVICE = 'submit it as a job, or `eval "$(eagleray env)"` in this shell to name a running cluster'


def connect(listen: Callable[[], None] = stop_on_sigterm) -> None:
    """Connect this driver to the cluster of its job, or of RAY_ADDRESS.

    `listen` is called afterwards, to take SIGTERM again: Ray has set a handler of its own, which exits.

    Raises:
        ClusterNotRunning: there is none, or nobody answers.
        AuthError: it wants another token, or the token's file is gone.
        Stopped: SIGTERM came meanwhile.
    """
    _require_answer(os.environ.get("RAY_ADDRESS", "auto"))
    # Read when ray is imported: the autoscaler's own lines; ours say what matters.
    os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
    import ray
    from ray.exceptions import AuthenticationError

    try:
        ray.init("auto", logging_level=logging.WARNING)  # "auto": where there is none, start none
    except SystemExit:  # by Ray's own handler of SIGTERM
        raise Stopped from None
    except ConnectionError as error:
        raise ClusterNotRunning(f"no Ray cluster is known here ({_first_line(error)}); {_ADVICE}") from error
    except AuthenticationError as error:
        said = _first_line(error)
        raise AuthError(f"the cluster does not take this driver's token: {said}; {_ADVICE}") from error
    listen()


def _require_answer(address: str) -> None:
    """Raise ClusterNotRunning where nobody listens at host:port: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT_S).close()
    except OSError as error:
        raise ClusterNotRunning(
            f"no cluster answers at RAY_ADDRESS {address} ({error.strerror or error}); {_ADVICE}"
        ) from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
