"""The cluster's ledger: started by `up` and `attach`, ended by `down`.

`python -m eagleray.cluster.ledger FOLDER` starts it on the local cluster in FOLDER; its supervisor runs that
where the cluster does not serve (else `serving.start` does both).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from eagleray.capacity.claims import Settings
from eagleray.cluster import head_actor, settings, state
from eagleray.cluster.arbiter import POLICY
from eagleray.cluster.names import LEDGER, NAMESPACE
from eagleray.cluster.profiles import Profile
from eagleray.cluster.state import ClusterState
from eagleray.errors import ClusterError

_MAX_CALLS = 4000
"""At one time on the ledger: each holder listens in one."""
_READY_S = 60.0
_END_S = 20.0


@dataclass(frozen=True)
class LedgerSettings:
    """What a ledger is started with."""

    cluster: str
    """The cluster's name."""
    storage_url: str
    """EAGLERAY_STORAGE: where its events go."""
    policy: Settings = field(default=POLICY)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LedgerSettings:
        """What `to_json` gave."""
        return cls(**{**values, "policy": Settings(**values["policy"])})


def patient(policy: Settings, profile: Profile) -> Settings:
    """The policy, with a lease no shorter than the time for which hosts may be cut off and live on."""
    return replace(policy, lease_s=max(policy.lease_s, profile.fence_s))


def start(wanted: LedgerSettings) -> Any:
    """The cluster's ledger, started where there is none; returns when it hears. Ray is connected.

    Raises:
        ClusterError: it did not start; the message says why.
    """
    import ray
    from ray.exceptions import RayError

    from eagleray.cluster.ledger_actor import LedgerActor
    from eagleray.cluster.observation_ray260 import expect_ledger, gcs_client

    actor = head_actor.start(LedgerActor, LEDGER, wanted.to_json(), max_calls=_MAX_CALLS)
    try:
        ray.get(actor.ping.remote(), timeout=_READY_S)
    except RayError as error:
        reason = " ".join(str(error).split())[-300:]
        raise ClusterError(f"the ledger did not start on the head: {reason}") from error
    expect_ledger(gcs_client())
    return actor


def find() -> Any:
    """The cluster's ledger, an actor; None where there is none."""
    import ray

    try:
        return ray.get_actor(LEDGER, namespace=NAMESPACE)
    except ValueError:
        return None


def end() -> None:
    """End the cluster's ledger, and what it left on the cluster; nothing happens where there is none.

    Raises:
        ClusterError: it does not answer; it runs on then.
    """
    import ray
    from ray.exceptions import RayActorError, RayError

    from eagleray.cluster.observation_ray260 import expect_ledger, gcs_client

    expect_ledger(gcs_client(), False)
    if (actor := find()) is None:
        return
    try:
        ray.get(actor.end.remote(), timeout=_END_S)
    except RayActorError:
        pass  # it is being started again, and knows nothing then
    except RayError as error:
        reason = " ".join(str(error).split())[-300:]
        raise ClusterError(f"the ledger has not ended: {reason}; run this again") from error
    ray.kill(actor)


def of_cluster(cluster: ClusterState) -> LedgerSettings:
    """Of the ledger of a local cluster."""
    return LedgerSettings(cluster.name, settings.storage_url())


def main(folder: Path) -> None:
    """Start the ledger of the local cluster in `folder`."""
    import ray

    cluster = state.read_path(folder)
    assert cluster is not None, f"no cluster state in {folder}"
    ray.init(cluster.gcs_address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    start(of_cluster(cluster))
    print("the ledger hears", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
