"""The only routed Serve application: the ingress, in a replica on the head that follows the controller."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eagleray import __version__, errors
from eagleray.errors import EaglerayError, ServiceError
from eagleray.serving.control_settings import CONTROLLER, NAMESPACE, ON_HEAD
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
            self._transport.keep_only(apps | set(news["draining"]))
        return True


class Reader:
    """One ingress's side of `Controller.watch`: which revision it has, and what it no longer uses."""

    def __init__(self) -> None:
        self.name = secrets.token_hex(4)
        self.revision = -1
        self._under_way: Counter[int] = Counter()
        """Requests by the revision that they began with, and keep."""
        self._draining: dict[str, int] = {}
        """Applications that no route leads to, and the revision since which none does."""
        self._controller: Any = None
        self._settings: Mapping[str, Any] | None = None
        """Of the controller that was last heard of."""

    @property
    def is_draining(self) -> bool:
        """Whether the controller waits for an application to be unused."""
        return bool(self._draining)

    @property
    def drained(self) -> list[str]:
        """Applications that no request here uses any more, or will use."""
        oldest = min(
            (revision for revision, number in self._under_way.items() if number), default=self.revision
        )
        return [app for app, since in self._draining.items() if oldest >= since]

    def take(self, news: Mapping[str, Any]) -> None:
        """From now on requests begin with this revision."""
        self.revision = revision = int(news["revision"])
        self._draining = {app: self._draining.get(app, revision) for app in news["draining"]}
        self._settings = news.get("settings")

    def counted(self, app: Any) -> Any:
        """`app`, with its requests counted."""

        async def counting(scope: Any, receive: Any, send: Any) -> None:
            revision = self.revision
            self._under_way[revision] += 1
            try:
                await app(scope, receive, send)
            finally:
                self._under_way[revision] -= 1
                if not self._under_way[revision]:
                    del self._under_way[revision]

        async def counting_http(scope: Any, receive: Any, send: Any) -> None:
            await (counting if scope["type"] == "http" else app)(scope, receive, send)

        return counting_http

    async def watch(self, wait_s: float) -> dict[str, Any] | None:
        """`Controller.watch` for this ingress. Raises: RayError or ValueError where nobody answers."""
        return await self._actor().watch.remote(self.name, self.revision, self.drained, wait_s)

    async def call(self, method: str, arguments: Sequence[Any]) -> dict[str, Any]:
        """`Controller.admin`. Raises: ServiceError where the controller does not answer."""
        from ray.exceptions import RayError

        try:
            return await self._actor().admin.remote(method, list(arguments))
        except (RayError, ValueError) as error:
            self.lose_controller()
            raise ServiceError(
                f"the serving controller does not answer ({type(error).__name__}); it is started again by "
                "itself: try again in some seconds, and look first whether this was done"
            ) from None

    def lose_controller(self) -> None:
        """Look the controller up anew at the next call."""
        self._controller = None

    async def start_controller(self) -> None:
        """Start the controller that was last heard of, unless somebody else has."""
        from eagleray.serving.control_settings import ControllerSettings
        from eagleray.serving.start import start

        if self._settings is not None:
            settings = ControllerSettings.from_json(self._settings)
            self._controller = await asyncio.to_thread(start, settings)

    def _actor(self) -> Any:
        import ray

        if self._controller is None:
            self._controller = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
        return self._controller


class ControllerBackend:
    """An AdminBackend that asks the controller."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def status(self) -> dict[str, Any]:
        """As AdminBackend."""
        return await self._ask("status")

    async def models(self) -> list[dict[str, Any]]:
        """As AdminBackend."""
        return await self._ask("models")

    async def model(self, name: str) -> dict[str, Any]:
        """As AdminBackend."""
        return await self._ask("model", name)

    async def promote(self, name: str, version: int, alias: str) -> dict[str, Any]:
        """As AdminBackend."""
        return await self._ask("promote", name, version, alias)

    async def services(self) -> list[dict[str, Any]]:
        """As AdminBackend."""
        return await self._ask("services")

    async def deploy(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """As AdminBackend."""
        return await self._ask("deploy", dict(spec))

    async def undeploy(self, name: str, version: int | None) -> dict[str, Any]:
        """As AdminBackend."""
        return await self._ask("undeploy", name, version)

    async def keys(self) -> list[dict[str, Any]]:
        """As AdminBackend."""
        return await self._ask("keys")

    async def create_key(self, name: str, scopes: Sequence[str]) -> dict[str, Any]:
        """As AdminBackend."""
        return await self._ask("create_key", name, list(scopes))

    async def revoke_key(self, key_id: str) -> dict[str, Any]:
        """As AdminBackend."""
        return await self._ask("revoke_key", key_id)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        answer = await self._call(method, arguments)
        if (error := answer.get("error")) is None:
            return answer["result"]
        kind = getattr(errors, error["kind"], EaglerayError)
        raise kind(error["message"])
