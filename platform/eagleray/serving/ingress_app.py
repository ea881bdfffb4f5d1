"""The only routed Serve application: the ingress, in a replica on the head that follows the controller."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from eagleray import __version__
from eagleray.cluster.names import ON_HEAD
from eagleray.errors import ServiceError
from eagleray.serving.controller_client import ControllerBackend, Reader
from eagleray.serving.state import IngressState

if TYPE_CHECKING:
    from eagleray.serving.ingress.app import IngressApp

DEPLOYMENT = "Ingress"
_MAX_REQUESTS = 2000
_WATCH_S, _DRAINING_WATCH_S = 10.0, 0.1
_RETRY_S = 0.5
_log = logging.getLogger(__name__)


def fingerprint() -> str:
    """Of what a running ingress cannot change."""
    return f"{__version__}-1"


def build() -> Any:
    """The Serve application, to be handed to Serve."""
    from ray import serve

    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=1,
        max_ongoing_requests=_MAX_REQUESTS,
        ray_actor_options={"num_cpus": 0, "resources": dict(ON_HEAD)},
        logging_config={"enable_access_log": False},  # the ingress counts requests itself
        health_check_period_s=2,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=10,
    )(serve.ingress()(IngressReplica))
    return deployment.bind()


class IngressReplica:
    """Holds an IngressApp, its state and its way to the replicas of models."""

    async def __init__(self) -> None:
        from eagleray.cluster.loopback_ray260 import keep_replica_to_node_address

        keep_replica_to_node_address()
        from eagleray.serving.ingress.app import IngressApp
        from eagleray.serving.serve_transport_ray260 import ServeTransport

        self._reader = Reader()
        self._is_told = False
        self._transport = ServeTransport()
        self._app: IngressApp = IngressApp(
            IngressState(),
            self._transport,
            ControllerBackend(self._reader.call),
            echoes_request_id=False,
        )
        while not await self._follow_once(0.0):
            await asyncio.sleep(_RETRY_S)
        self._follower = asyncio.get_running_loop().create_task(self._follow())

    def __serve_build_asgi_app__(self) -> Any:
        """What Serve's proxy hands requests to."""
        return self._reader.counted(self._app)

    async def check_health(self) -> None:
        """Serve asks; a replica that no longer follows the controller is replaced."""
        if self._follower.done():
            raise ServiceError(f"the ingress no longer follows the controller: {self._follower.exception()}")

    async def _follow(self) -> None:
        while True:
            if not await self._follow_once(_DRAINING_WATCH_S if self._reader.is_draining else _WATCH_S):
                await asyncio.sleep(_RETRY_S)

    async def _follow_once(self, wait_s: float) -> bool:
        """Take over the controller's newest state; False where it does not answer: the last one stays."""
        from ray.exceptions import RayError

        try:
            news = await self._reader.watch(wait_s)
        except (RayError, ValueError) as error:
            if not self._is_told:
                _log.warning("the controller does not answer: %s", error)
            self._is_told = True
            self._reader.lose_controller()
            if isinstance(error, ValueError):  # there is none, nor will Ray start it again
                await self._reader.start_controller()
            return False
        self._is_told = False
        if news is not None:
            self._app.state = IngressState.from_json(news["state"])
            self._reader.take(news)
            apps = {
                target.app
                for route in self._app.state.routes.models.values()
                for target in route.versions.values()
            }
            self._transport.expect(news["starts"])
            self._transport.keep_only(apps | set(news["draining"]))
        return True
