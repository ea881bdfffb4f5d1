"""`eagleray down` of an attached cluster: what `attach` started there ends, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from eagleray.cluster import attached, ledger
from eagleray.cluster.attached import AttachedCluster
from eagleray.errors import ClusterError
from eagleray.serving import start
from eagleray.serving.services import is_ours
from eagleray.workflows.joining import joined

_END_S = 90.0
_ASK_S = 5.0


def detach(cluster: AttachedCluster, say: Callable[[str], None] = print) -> None:
    """End what `attach` started on the cluster, and nothing else, then forget the cluster.

    Raises:
        ClusterError: the cluster cannot be reached, or what was started has not ended. Nothing is forgotten
            then, and another call goes on.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(joined(cluster.address))
        except ClusterError as error:
            raise ClusterError(
                f"{error}; where that cluster is gone for good, delete {cluster.directory}, which is all "
                "that is left of it here"
            ) from None
        controller = start.find()
        if controller is None:
            _check_nothing_is_left(cluster)
        else:
            _end(cluster, controller)
        ledger.end()
        _withdraw_profile()
    attached.forget(cluster.name)
    say(f"cluster {cluster.name!r} is as it was before `eagleray attach`")


def _withdraw_profile() -> None:
    from eagleray.cluster import recovery_ray260

    recovery_ray260.withdraw()


def _end(cluster: AttachedCluster, controller: Any) -> None:
    """Let the controller end all that it started, then end it. Raises: ClusterError where that fails."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    what = f"`eagleray down --name {cluster.name}`: what `attach` started on the cluster at {cluster.address}"
    try:
        ray.get(controller.end.remote(), timeout=_END_S)
    except GetTimeoutError:
        raise ClusterError(f"{what} has not ended in {_END_S:g} s: {_state_of(controller)}") from None
    except RayError as error:
        reason = " ".join(str(getattr(error, "cause", None) or error).split())[-300:]
        raise ClusterError(
            f"{what} has not all ended; its serving controller failed: {reason}; run this again, which goes "
            "on with what is left (`serve status` on the head names it)"
        ) from error
    ray.kill(controller)


def _state_of(controller: Any) -> str:
    """What keeps it, and what to do."""
    import ray
    from ray.exceptions import RayError

    try:
        said: Any = ray.get(controller.ping.remote(), timeout=_ASK_S)
    except RayError:
        return (
            "its serving controller does not answer; run this again, and where that does not help, end the "
            "process ray::ControllerActor on the head (Ray starts it anew) and run this again"
        )
    return f"{said['trouble']}; it goes on there: run this again, which waits for it"


def _check_nothing_is_left(cluster: AttachedCluster) -> None:
    """Raises: ClusterError where Serve runs what is ours, and no controller is there that would end it."""
    from eagleray.serving.serve_control_ray260 import ServeControl

    serve = ServeControl()
    names = serve.observe() if serve.is_running() else []
    if ours := list(filter(is_ours, names)):
        raise ClusterError(
            f"the cluster {cluster.name!r} at {cluster.address} has no serving controller any more, but "
            f"Serve still runs {', '.join(sorted(ours))}; `eagleray attach` as before starts the controller "
            f"anew, and `eagleray down --name {cluster.name}` then ends all of it (or delete "
            f"{cluster.directory}, where these are not Eagleray's)"
        )
