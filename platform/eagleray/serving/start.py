"""Serving on a running cluster: `start` makes sure of the controller, which sees to all the rest.

`python -m eagleray.serving.start FOLDER` does so for the local cluster in FOLDER; its supervisor runs that.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

from eagleray.cluster import head_actor, ledger, settings, state
from eagleray.cluster.files import read_json
from eagleray.cluster.names import NAMESPACE, ON_HEAD
from eagleray.cluster.probing import answers
from eagleray.cluster.state import ClusterState
from eagleray.errors import ClusterError, ServiceError
from eagleray.serving import memory
from eagleray.serving.control_settings import CONTROLLER, ControllerSettings
from eagleray.serving.gateway.settings import GatewaySettings
from eagleray.serving.state import Limits
from eagleray.specs.local import LocalServing

_READY_TIMEOUT_S = 120.0
_HEAD_TIMEOUT_S = 60.0
_MAX_CALLS = 1000
"""At one time on the controller: each ingress and each admin request waits in one."""


def local_settings(cluster: ClusterState, serving: LocalServing) -> ControllerSettings:
    """Of the controller of a local cluster."""
    return ControllerSettings(
        cluster=cluster.name,
        directory=str(settings.serving_dir(cluster.name)),
        admin_key_path=str(cluster.admin_key_path),
        host=serving.host,
        port=cluster.ports["ingress"],
        storage_url=settings.storage_url(),
        tracking_uri=settings.tracking_uri(),
        # What comes through a proxy comes from elsewhere, whatever the socket's other end is.
        is_key_needed_for_infer=serving.require_key
        or bool(serving.trusted_proxies)
        or not state.is_loopback(serving.host),
        limits=Limits(int(serving.max_body_mib * 2**20), serving.request_timeout_s),
        gateway=GatewaySettings(
            serving.gateways,
            labels=serving.gateway_labels,
            trusted_proxies=serving.trusted_proxies,
            tls_cert=serving.tls_cert or "",
            tls_key=serving.tls_key or "",
            access_log_bytes=int(serving.access_log_mib * 2**20),
            parked_bytes=int(serving.parked_mib * 2**20),
        ),
        serve_port=cluster.ports["serve"],
    )


def start(wanted: ControllerSettings) -> Any:
    """The cluster's serving controller, started where there is none; Ray is connected to the cluster."""
    from eagleray.serving.controller_actor import ControllerActor

    return head_actor.start(ControllerActor, CONTROLLER, wanted.to_json(), max_calls=_MAX_CALLS)


def directory_on_head(cluster: str) -> str:
    """Where the controller of a cluster that others started keeps its record: below the head's EAGLERAY_HOME.

    The head's own, whoever asks and from wherever: the next one is told the same. Ray is connected.

    Raises:
        ClusterError: it cannot be written there, or the head did not answer.
    """
    import ray
    from ray.exceptions import RayError

    try:
        make: Any = ray.remote(num_cpus=0, max_retries=0, resources=dict(ON_HEAD))(memory.make_directory)
        found, trouble = ray.get(make.remote(cluster), timeout=_HEAD_TIMEOUT_S)
    except RayError as error:
        reason = " ".join(str(error).split())[-300:]
        raise ClusterError(f"the head did not say where it keeps what is served: {reason}") from error
    if trouble:
        raise ClusterError(
            f"what is served is kept on the head, in its EAGLERAY_HOME, and there: {trouble}; start Ray on "
            "the head with EAGLERAY_HOME set to a folder of its own disk that its user may write"
        )
    return found


def find() -> Any:
    """The cluster's serving controller; None where there is none."""
    import ray

    try:
        return ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    except ValueError:
        return None


def await_ingress(url: str, controller: Any, timeout_s: float = _READY_TIMEOUT_S) -> None:
    """Wait until the ingress answers. Raises: ServiceError after `timeout_s`, with the reason."""
    import ray

    deadline = time.monotonic() + timeout_s
    while not answers(f"{url}/v2/health/live"):
        if time.monotonic() > deadline:
            said: Any = ray.get(controller.ping.remote(), timeout=10)
            raise ServiceError(
                f"the ingress does not answer at {url} after {timeout_s:.0f} s: {said['trouble']}"
            )
        time.sleep(0.1)


def main(folder: Path) -> None:
    """Start serving on the local cluster in `folder`; returns when the ingress answers."""
    import ray

    cluster = state.read_path(folder)
    values = read_json(folder / "serving.json")
    assert cluster is not None
    assert values is not None, f"no serving.json in {folder}"
    ray.init(cluster.gcs_address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    wanted = local_settings(cluster, LocalServing.model_validate(values))
    controller = start(wanted)
    ledger.start(ledger.of_cluster(cluster))
    await_ingress(wanted.url, controller)
    print(f"the ingress answers at {wanted.url}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
