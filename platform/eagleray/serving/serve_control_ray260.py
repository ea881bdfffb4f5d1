"""Ray Serve 2.60 under our controller: started on the head, handed applications, asked what it runs.

Serve's public `serve.run` waits for what it starts, starts Serve anew with other options where it is gone,
and gives every deployment a new version, so that handing it the same thing again restarts all replicas. This
goes one level below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eagleray.cluster import ports
from eagleray.cluster.state import LOOPBACK
from eagleray.serving.preconditions import ServeFacts
from eagleray.serving.reconcile import Seen

_DECISIONS_TIMEOUT_S = 2.0
_RUNNING_REPLICA = "RUNNING"


@dataclass(frozen=True)
class App:
    """A Serve application of one deployment."""

    name: str
    deployment: Any
    """Bound: a `serve.Application`."""
    version: str
    """Of what running replicas cannot change: handed the same again, Serve restarts none."""
    route_prefix: str | None = None
    """None: reached through handles only."""


class ServeControl:
    """Serve as this process sees it. Every method blocks; for one thread at a time."""

    def __init__(self, port: int = 0) -> None:
        """`port`: of Serve's proxy, on loopback, where this starts Serve; 0 takes any free one."""
        self._port = port

    def start(self) -> bool:
        """Start Serve, unless it runs already; its proxy, on the head only, starts in the background.

        Returns:
            Whether this has started it.
        """
        from ray.serve import context
        from ray.serve._private import api, client
        from ray.serve.config import ControllerOptions, HTTPOptions, ProxyLocation
        from ray.serve.schema import LoggingConfig

        if context._get_global_client(raise_if_no_controller_running=False) is not None:
            return False
        port = self._port or ports.free_ports(LOOPBACK, ["serve"])["serve"]
        controller, _proxies = api._create_controller_and_proxy_refs(
            http_options=HTTPOptions(host=LOOPBACK, port=port),
            grpc_options=None,
            # No request of ours goes through it, and what each replica does the ingress counts.
            global_logging_config=LoggingConfig(enable_access_log=False),
            global_tracing_config=None,
            controller_options=ControllerOptions(),
            proxy_location=ProxyLocation.HeadOnly,
        )
        context._set_global_client(client.ServeControllerClient(controller))
        return True

    def facts(self) -> ServeFacts | None:
        """How Serve runs; None where it does not."""
        import ray
        from ray.serve import context

        client: Any = context._get_global_client(raise_if_no_controller_running=False)
        if client is None:
            return None
        location: Any = ray.get(client._controller.get_proxy_location.remote())
        return ServeFacts(
            host=client.http_config.host,
            port=client.http_config.port,
            location=getattr(location, "value", str(location)),
        )

    def is_running(self) -> bool:
        """Whether Serve runs on the cluster."""
        from ray.serve import context

        return context._get_global_client(raise_if_no_controller_running=False) is not None

    def shut_down(self) -> None:
        """End Serve and all its applications."""
        from ray import serve

        serve.shutdown()

    def apply(self, apps: Sequence[App]) -> None:
        """Hand Serve these applications, new ones or others of the same name; returns before they run.

        Raises: ValueError, TypeError or RayServeException where Serve refuses one; RayError where it is gone.
        """
        from ray.serve._private.build_app import build_app

        built = []
        for app in apps:
            app.deployment._bound_deployment._version = app.version
            built.append(build_app(app.deployment, name=app.name, route_prefix=app.route_prefix))
        self._client().deploy_applications(
            built, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
        )

    def delete(self, names: Sequence[str]) -> None:
        """Let Serve end these applications; replicas finish what they have begun."""
        self._client().delete_apps(list(names), blocking=False)

    def observe(self) -> dict[str, Seen]:
        """Every application that Serve has, but not how many replicas."""
        return {overview.name: _seen(overview) for overview in self._client().list_serve_statuses()}

    def num_replicas(self) -> dict[str, int]:
        """How many replicas of each application answer."""
        from ray import serve

        return {
            name: sum(_running(deployment.replica_states) for deployment in app.deployments.values())
            for name, app in serve.status().applications.items()
        }

    def decisions(self) -> dict[str, dict[str, Any]]:
        """The last decision on the replicas of each application, by `scaling_reasons` there."""
        import ray
        from ray.exceptions import RayError

        from eagleray.serving import scaling_reasons

        try:
            return ray.get(
                self._client()._controller.__ray_call__.remote(scaling_reasons.decisions),
                timeout=_DECISIONS_TIMEOUT_S,
            )
        except (RayError, AttributeError, ImportError):
            return {}  # it is busy, or runs what was installed before an upgrade

    def forget(self) -> None:
        """Drop this process's connection to Serve: the next call looks for it anew."""
        from ray.serve import context

        context._disconnect()

    def _client(self) -> Any:
        from ray.serve import context

        return context._get_global_client()


def _running(states: Mapping[Any, int]) -> int:
    return sum(
        number for state, number in states.items() if str(getattr(state, "value", state)) == _RUNNING_REPLICA
    )


def _seen(overview: Any) -> Seen:
    """UNHEALTHY is no end: Serve goes on trying."""
    status = str(overview.app_status.status.value)
    messages = [deployment.message for deployment in overview.deployment_statuses if deployment.message]
    message = messages[0] if messages else overview.app_status.message
    match status:
        case "RUNNING":
            return Seen("running", message)
        case "DEPLOY_FAILED":
            return Seen("failed", message)
        case "DELETING":
            return Seen("deleting", message)
        case _:
            return Seen("deploying", message)
