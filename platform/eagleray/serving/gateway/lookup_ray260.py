"""Which replicas of an application run, and where: Serve (Ray 2.60) tells gateways as it changes.

By the question that Serve's own handles ask its controller, which answers at once where it knows of other
replicas than the asker. A handle would bring a router, a thread and a queue for each application; a router
class of ours would be told the same, and only in processes that send through handles.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from eagleray.serving.link.sockets import ReplicaAddress
from eagleray.serving.model_app import DEPLOYMENT
from eagleray.serving.replica.listening import METADATA

RETRY_S = 0.5
_NEVER_SEEN = -1
_ADDRESS = {"unix": str, "tcp": str, "instance": str, "node": str, "protocol": int}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Running:
    """One replica that takes requests."""

    address: ReplicaAddress | None
    """None: it has published none."""
    max_ongoing: int
    """Requests that it works on at a time."""


OnChange = Callable[[str, Sequence[Running]], None]
"""Takes an application, and its replicas now."""


class Watcher(Protocol):
    """As `Lookup`."""

    def follow(self, apps: Collection[str]) -> None:
        """Watch these and no others."""
        ...

    async def close(self) -> None:
        """Watch none any more."""
        ...


class Lookup:
    """Watches applications. For one event loop."""

    def __init__(self, on_change: OnChange) -> None:
        """`on_change`: told an application's replicas at first, and whenever they are others."""
        self._on_change = on_change
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._controller: Any = None

    def follow(self, apps: Collection[str]) -> None:
        """Watch these and no others."""
        for app in self._watches.keys() - set(apps):
            self._watches.pop(app).cancel()
        for app in set(apps) - self._watches.keys():
            self._watches[app] = asyncio.get_running_loop().create_task(self._watch(app))

    async def close(self) -> None:
        """Watch none any more."""
        watches = list(self._watches.values())
        self.follow(())
        await asyncio.gather(*watches, return_exceptions=True)

    async def _watch(self, app: str) -> None:
        key, seen, trouble = _key(app), _NEVER_SEEN, ""
        while True:
            try:
                news = await self._ask({key: seen})
                trouble = ""
            except Exception as error:  # Serve's controller is away: what was known last goes on
                if (found := f"{type(error).__name__}: {error}") != trouble:
                    trouble = found
                    _log.warning("Serve does not say which replicas %s has: %s", app, trouble)
                self._controller, seen = None, _NEVER_SEEN
                await asyncio.sleep(RETRY_S)
                continue
            if not isinstance(news, Mapping) or key not in news:
                continue  # nothing has changed for a while
            seen = news[key].snapshot_id
            self._on_change(app, running(news[key].object_snapshot))

    async def _ask(self, known: Mapping[Any, int]) -> Any:
        if self._controller is None:
            import ray
            from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

            self._controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        return await self._controller.listen_for_change.remote(known)


def running(targets: Any) -> list[Running]:
    """The replicas in what Serve says of a deployment (`DeploymentTargetInfo`)."""
    return [
        Running(_address(replica.replica_metadata), replica.max_ongoing_requests)
        for replica in targets.running_replicas
    ]


def _address(metadata: Mapping[str, Any]) -> ReplicaAddress | None:
    found = metadata.get(METADATA)
    if not isinstance(found, Mapping) or any(
        not isinstance(found.get(name), kind) for name, kind in _ADDRESS.items()
    ):
        return None
    return cast(ReplicaAddress, {name: found[name] for name in _ADDRESS})


def _key(app: str) -> Any:
    from ray.serve._private.common import DeploymentID
    from ray.serve._private.long_poll import LongPollNamespace

    return LongPollNamespace.DEPLOYMENT_TARGETS, DeploymentID(DEPLOYMENT, app)
