"""The ingress as a Serve application without a route: each replica is a gateway that follows the controller.

Serve places, watches and replaces the replicas; requests never go through it. Each listens on the ingress's
port itself, in a thread with a loop of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagleray import __version__
from eagleray.cluster.names import ON_HEAD
from eagleray.errors import ServiceError
from eagleray.serving.control_settings import ControllerSettings
from eagleray.serving.controller_client import ControllerBackend, Reader
from eagleray.serving.memory import GATEWAYS
from eagleray.serving.services import Trouble
from eagleray.serving.state import IngressState

if TYPE_CHECKING:
    from eagleray.serving.gateway.counters import Counters
    from eagleray.serving.gateway.process import Gateway
    from eagleray.serving.gateway.settings import GatewaySettings
    from eagleray.serving.gateway.sharing import Sharing

DEPLOYMENT = "Ingress"
_FIRST_WATCH_S, _WATCH_S, _DRAINING_WATCH_S = 1.0, 10.0, 0.1
_RETRY_S = 0.5
_MOST_DRAIN_S = 60.0
_STOP_S = 5.0
_SILENT_S = 30.0
"""A loop that has not turned for so long hangs."""
_log = logging.getLogger(__name__)


def fingerprint(settings: ControllerSettings, restarts: int = 0) -> str:
    """Of what a running gateway cannot change: with another one Serve replaces all of them."""
    return f"{__version__}-3-{replace(settings.gateway, number=1)}-{restarts}"


def build(settings: ControllerSettings) -> Any:
    """The Serve application, to be handed to Serve."""
    from ray import serve

    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=settings.gateway.number,
        ray_actor_options={"num_cpus": 0, **place(settings.gateway)},
        max_surge_percent=100,  # else old gateways end before new ones listen
        health_check_period_s=2,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=drain_s(settings) + 2 * _STOP_S,
    )(IngressReplica)
    return deployment.bind()


def place(gateway: GatewaySettings) -> dict[str, Any]:
    """Options of an actor that is to run where gateways do: on the head, or on nodes with their labels."""
    return {"label_selector": dict(gateway.labels)} if gateway.labels else {"resources": dict(ON_HEAD)}


def drain_s(settings: ControllerSettings) -> float:
    """How long a gateway that is to end waits for what it is answering."""
    return min(settings.limits.timeout_s, _MOST_DRAIN_S)


class IngressReplica:
    """Serve's side of a gateway: started, watched, ended."""

    async def __init__(self) -> None:
        from eagleray.cluster.loopback_ray260 import keep_replica_to_node_address

        keep_replica_to_node_address()
        from eagleray.serving import garbage
        from eagleray.serving.gateway import identity_ray260
        from eagleray.serving.gateway.thread import LoopThread

        self._thread = LoopThread("gateway")
        self._ingress = Ingress(identity_ray260.name(), before_listening=garbage.collect_seldom)
        try:
            await asyncio.wrap_future(self._thread.submit(self._ingress.open()))
        except BaseException:
            self._thread.stop()
            raise

    async def check_health(self) -> None:
        """Serve asks; a replica that does not serve any more is replaced."""
        if not self._thread.is_alive:
            raise ServiceError("the gateway's thread has ended")
        if (silent_s := self._thread.silent_s) > _SILENT_S:
            raise ServiceError(f"the gateway's loop has not turned for {silent_s:.0f} s")
        if trouble := self._ingress.trouble:
            raise ServiceError(trouble)

    async def __del__(self) -> None:
        """Serve asks for it once, before it ends the process."""
        if self._thread.is_alive:
            await asyncio.wrap_future(self._thread.submit(self._ingress.close()))
            await asyncio.to_thread(self._thread.stop)


class Ingress:
    """A gateway, the application behind it, and its way to the controller and to models; for one loop."""

    def __init__(self, name: str = "", *, before_listening: Callable[[], None] = lambda: None) -> None:
        """Nothing is open.

        Args:
            name: Of the gateway, for the controller.
            before_listening: Called when all is loaded and no request can have come yet.
        """
        self._before_listening = before_listening
        self._reader = Reader(name)
        self._is_told = False
        self._gateway: Gateway | None = None
        self._sharing: Sharing | None = None
        self._counters: Counters | None = None
        self._writing: asyncio.Task[None] | None = None
        self._follower: asyncio.Task[None] | None = None
        self._is_ending = False

    async def open(self) -> None:
        """Follow the controller, and listen where it says. Raises: ServiceError where that cannot be."""
        from eagleray.serving.gateway import access_log
        from eagleray.serving.gateway.counters import Counters
        from eagleray.serving.gateway.lane import Lane
        from eagleray.serving.gateway.link_transport import LinkTransport
        from eagleray.serving.gateway.process import Gateway
        from eagleray.serving.gateway.sharing import Sharing
        from eagleray.serving.gateway.telling_ray260 import Teller
        from eagleray.serving.ingress.app import IngressApp
        from eagleray.serving.replica.listening import here
        from eagleray.serving.serve_transport_ray260 import ServeTransport

        self._transport = LinkTransport(ServeTransport(), node=here()[1])
        self._teller = Teller(self._transport.demand)
        self._teller.start()
        self._app = IngressApp(IngressState(), self._transport, ControllerBackend(self._reader.call))
        self._app.gate_of = self._transport.gate
        self._app.metrics.laned = self._transport.laned
        self._app.metrics.ways = self._transport.ways
        self._sharing = Sharing(self._app.admission, self._reader.ask_for_shares)
        while (settings := self._reader.settings) is None:
            if not await self._follow_once(_FIRST_WATCH_S):
                await asyncio.sleep(_RETRY_S)
        self._transport.parking.max_bytes = settings.gateway.parked_bytes
        lane = Lane(self._app, self._transport, begin=self._reader.begin, end=self._reader.end)
        gateway = Gateway(
            self._reader.counted(self._app),
            settings.gateway,
            host=settings.host,
            port=settings.port,
            directory=Path(settings.directory),
            on_refused=self._app.refused,
            connection=lane.connection,
        )
        self._before_listening()
        await gateway.open()
        if settings.gateway.access_log_bytes:
            folder = Path(settings.directory) / access_log.FOLDER
            self._app.access_log = access_log.AccessLog(folder, settings.gateway.access_log_bytes)
        self._counters = Counters(Path(settings.directory) / GATEWAYS, self._app.metrics)
        self._counters.has_others = settings.gateway.number > 1
        self._app.metrics.page = self._counters.page
        self._gateway = gateway
        loop = asyncio.get_running_loop()
        self._writing = loop.create_task(self._counters.keep_writing())
        self._follower = loop.create_task(self._follow())

    @property
    def trouble(self) -> str:
        """Why it no longer serves; empty where it does. From any thread."""
        if self._is_ending:
            return ""
        if self._follower is None or self._follower.done():
            error = None if self._follower is None else self._follower.exception()
            return f"the ingress no longer follows the controller: {error}"
        if self._gateway is None or not self._gateway.is_listening:
            return "the gateway no longer listens"
        return ""

    async def close(self) -> None:
        """Take no more requests, finish what is under way, end."""
        self._is_ending = True
        if self._gateway is not None:
            assert self._reader.settings is not None
            await self._gateway.close(drain_s(self._reader.settings))
        if self._follower is not None:
            self._follower.cancel()
        await self._teller.close()
        if self._writing is not None and self._counters is not None:
            self._writing.cancel()
            self._counters.close()
        if self._sharing is not None:
            await self._sharing.close()
        await self._reader.leave()
        await self._transport.close()
        if self._app.access_log is not None:
            self._app.access_log.close()

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
            assert self._reader.settings is not None
            number = self._reader.settings.gateway.number
            self._transport.share(number)
            if self._sharing is not None:
                self._sharing.follow(number)
            if self._counters is not None:
                self._counters.has_others = number > 1
            apps = {
                target.app
                for route in self._app.state.routes.models.values()
                for target in route.versions.values()
            }
            self._transport.expect(news["starts"])
            self._transport.ail({app: Trouble(**found) for app, found in news.get("ailing", {}).items()})
            self._transport.follow(news["links"], apps | set(news["draining"]))
        return True
