"""The ingress's side of the controller: its news, and the admin API's questions to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from eagleray import errors
from eagleray.cluster.names import NAMESPACE
from eagleray.errors import EaglerayError, ServiceError
from eagleray.serving.admission.shares import LEASE_S
from eagleray.serving.control_settings import CONTROLLER, ControllerSettings

_REACH_S = 2.0
_log = logging.getLogger(__name__)

Call = Callable[[str, Sequence[Any]], Awaitable[Mapping[str, Any]]]


class Reader:
    """One ingress's side of `Controller.watch`: which revision it has, and what it no longer uses."""

    def __init__(self, gateway: str = "") -> None:
        """`gateway`: what Ray knows it by, so that the controller can ask whether it lives.

        One that is no gateway has a name of its own, which is waited for as long as for one that is cut off.
        """
        self.name = gateway or secrets.token_hex(4)
        self.revision = -1
        self._under_way: Counter[int] = Counter()
        """Requests by the revision that they began with, and keep."""
        self._draining: dict[str, int] = {}
        """Applications that no route leads to, and the revision since which none does."""
        self._controller: Any = None
        self._settings: ControllerSettings | None = None
        self._news = asyncio.Event()

    @property
    def settings(self) -> ControllerSettings | None:
        """Of the controller that was last heard of."""
        return self._settings

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
        if "settings" in news:
            self._settings = ControllerSettings.from_json(news["settings"])
        self._news.set()
        self._news = asyncio.Event()

    def begin(self) -> int:
        """A request begins: the revision that it goes by, for `end`."""
        self._under_way[self.revision] += 1
        return self.revision

    def end(self, revision: int) -> None:
        """A request that began with that revision is over."""
        self._under_way[revision] -= 1
        if not self._under_way[revision]:
            del self._under_way[revision]

    def counted(self, app: Any) -> Any:
        """`app`, with its requests counted."""

        async def counting(scope: Any, receive: Any, send: Any) -> None:
            revision = self.begin()
            try:
                await app(scope, receive, send)
            finally:
                self.end(revision)

        async def counting_http(scope: Any, receive: Any, send: Any) -> None:
            await (counting if scope["type"] == "http" else app)(scope, receive, send)

        return counting_http

    def ask_for_shares(self, held: Mapping[str, Any], demands: Mapping[str, float]) -> dict[str, Any]:
        """`Accounts.renew` for the gateway of this process; it blocks.

        Raises: RayError or ValueError where nobody answers.
        """
        import ray

        asked = self._actor().shares.remote(self.name, held, demands)
        return ray.get(asked, timeout=LEASE_S)

    async def leave(self) -> None:
        """`Controller.leave` for this ingress; a controller that does not hear it will ask Ray."""
        try:
            async with asyncio.timeout(LEASE_S):
                await self._actor().leave.remote(self.name)
        except Exception as error:  # a Ray that ends, too: what follows here is to be closed all the same
            _log.info("the controller was not told that this gateway ends: %s", error)

    async def watch(self, wait_s: float) -> dict[str, Any] | None:
        """`Controller.watch` for this ingress. Raises: RayError or ValueError where nobody answers."""
        return await self._actor().watch.remote(self.name, self.revision, self.drained, wait_s)

    async def call(self, method: str, arguments: Sequence[Any]) -> dict[str, Any]:
        """`Controller.admin`, whose effect is known here when this returns.

        Raises: ServiceError where the controller does not answer.
        """
        from ray.exceptions import RayError

        try:
            answer = await self._actor().admin.remote(method, list(arguments))
        except (RayError, ValueError) as error:
            self.lose_controller()
            raise ServiceError(
                f"the serving controller does not answer ({type(error).__name__}); it is started again by "
                "itself: try again in some seconds, and look first whether this was done"
            ) from None
        await self.reach(answer.get("revision", -1))
        return answer

    async def reach(self, revision: int) -> None:
        """Return when `take` has had this revision, or after 2 s: who deploys a model asks it next."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REACH_S):
                while self.revision < revision:
                    await self._news.wait()

    def lose_controller(self) -> None:
        """Look the controller up anew at the next call."""
        self._controller = None

    async def start_controller(self) -> None:
        """Start the controller that was last heard of, unless somebody else has."""
        from eagleray.serving.start import start

        if self._settings is not None:
            self._controller = await asyncio.to_thread(start, self._settings)

    def _actor(self) -> Any:
        import ray

        if self._controller is None:
            self._controller = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
        return self._controller


class ControllerBackend:
    """An AdminBackend that asks the controller."""

    def __init__(self, call: Call) -> None:
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

    async def runs(self, name: str | None, limit: int) -> list[dict[str, Any]]:
        """As AdminBackend."""
        return await self._ask("runs", name, limit)

    async def services(self) -> list[dict[str, Any]]:
        """As AdminBackend."""
        return await self._ask("services")

    async def deploy(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """As AdminBackend."""
        return await self._ask("deploy", dict(spec))

    async def undeploy(self, name: str, version: int | None) -> dict[str, Any]:
        """As AdminBackend."""
        return await self._ask("undeploy", name, version)

    async def claims(self) -> dict[str, Any]:
        """As AdminBackend."""
        return await self._ask("claims")

    async def gateways(self) -> dict[str, Any]:
        """As AdminBackend."""
        return await self._ask("gateways")

    async def restart_gateways(self) -> dict[str, Any]:
        """As AdminBackend."""
        return await self._ask("restart_gateways")

    async def scale_gateways(self, number: int) -> dict[str, Any]:
        """As AdminBackend."""
        return await self._ask("scale_gateways", number)

    async def keys(self) -> list[dict[str, Any]]:
        """As AdminBackend."""
        return await self._ask("keys")

    async def create_key(
        self, name: str, scopes: Sequence[str], terms: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """As AdminBackend."""
        return await self._ask("create_key", name, list(scopes), dict(terms or {}))

    async def rotate_key(self, key_id: str, overlap_s: float) -> dict[str, Any]:
        """As AdminBackend."""
        return await self._ask("rotate_key", key_id, overlap_s)

    async def revoke_key(self, key_id: str) -> dict[str, Any]:
        """As AdminBackend."""
        return await self._ask("revoke_key", key_id)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        answer = await self._call(method, arguments)
        if (error := answer.get("error")) is None:
            return answer["result"]
        kind = getattr(errors, error["kind"], EaglerayError)
        raise kind(error["message"])
