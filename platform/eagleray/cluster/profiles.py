"""Recovery profiles: how soon a cluster takes silence for death. All their settings stand here.

`python -m eagleray.cluster.profiles NAME` prints them as exports, for a shell that starts Ray (cluster.yaml).
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eagleray.errors import InputError

if TYPE_CHECKING:  # the guard of a node needs the names' values, and not pydantic
    from eagleray.specs.local import ProfileName

VARIABLE = "EAGLERAY_PROFILE"
"""Names the profile in the environment of every process of a cluster that was started with one."""


@dataclass(frozen=True)
class Profile:
    """One set of settings, each for those that read it when they start."""

    name: ProfileName
    heartbeat_s: float
    """A rank of a run that gives no sign of life for so long hangs (for longer, where steps are long)."""
    fence_s: float
    """A host that has not reached the head for so long ends its node: the others take it for dead by then."""
    of_ray: Mapping[str, str]
    """Read by the GCS, by raylets and by their agents."""
    of_serve: Mapping[str, str]
    """Read by Serve's controller."""
    of_jobs: Mapping[str, str] = field(default_factory=dict)
    """Read by the drivers of stock Ray Train jobs: a run of ours waits for its seats, however long."""

    def environment(self) -> dict[str, str]:
        """All of it, and the profile's name, for the processes that start Ray: the others inherit it."""
        return {**self.of_ray, **self.of_serve, **self.of_jobs, VARIABLE: self.name}


def _of_ray(period_ms: int, timeout_ms: int, failures: int, *, gcs_may_be_away_s: int = 60) -> dict[str, str]:
    """The GCS asks each raylet every `period_ms` + its answer; `failures` in a row are a dead node."""
    return {
        "RAY_health_check_period_ms": str(period_ms),
        "RAY_health_check_timeout_ms": str(timeout_ms),
        "RAY_health_check_failure_threshold": str(failures),
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(gcs_may_be_away_s),  # then a raylet ends by itself
    }


def _of_serve(period_s: float, timeout_s: float) -> dict[str, str]:
    """A proxy is replaced after three failed checks: 25 to 31 s with Serve's own 10 s for both."""
    return {
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": f"{period_s:g}",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": f"{timeout_s:g}",
    }


PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            "default", heartbeat_s=8, fence_s=6, of_ray=_of_ray(1000, 2000, 3), of_serve=_of_serve(1, 10)
        ),
        Profile(
            "fast",
            heartbeat_s=3,
            fence_s=3,
            of_ray=_of_ray(500, 1000, 3),
            of_serve=_of_serve(1, 2),
            # A stock job waits Ray's 60 s for the dead node's place before it restarts at another size.
            of_jobs={"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "8"},
        ),
        # Rides out a minute without a network, as Ray's own tests with iptables do.
        Profile(
            "lossy",
            heartbeat_s=60,
            fence_s=80,
            of_ray=_of_ray(5000, 20000, 4, gcs_may_be_away_s=180),
            of_serve=_of_serve(10, 30),
        ),
    )
}


def named(name: str) -> Profile:
    """The profile called `name`. Raises: InputError where there is none."""
    try:
        return PROFILES[name]
    except KeyError:
        raise InputError(
            f"no recovery profile is called {name!r}; choose one of {', '.join(PROFILES)}"
        ) from None


def of_environment() -> Profile:
    """That of the cluster which this process belongs to, by its environment; else the default one.

    Raises:
        InputError: EAGLERAY_PROFILE names none.
    """
    return named(os.environ.get(VARIABLE) or "default")


def as_shell(profile: Profile) -> str:
    """Lines of `export NAME=value`."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in profile.environment().items())


if __name__ == "__main__":
    try:
        print(as_shell(named(*sys.argv[1:2] or ["default"])), end="")
    except InputError as error:
        sys.exit(f"error: {error}")
