"""The serving controller: one on the head, the only writer of routes, model applications and keys.

What it must not forget is a file; what Serve runs is asked of Serve. A loop carries out what
`reconcile.decide` finds missing between the two: no restart, of this actor, of Serve or of the GCS, is a case
of its own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeVar

from eagleray import __version__
from eagleray.cluster.probing import answers
from eagleray.errors import EaglerayError, ServiceError
from eagleray.serving import ingress_app, memory, model_app
from eagleray.serving.accounting import Accounts
from eagleray.serving.catalog import Catalog
from eagleray.serving.control_admin import ControlPlane
from eagleray.serving.control_settings import INGRESS_APP, ControllerSettings
from eagleray.serving.gateway import identity_ray260
from eagleray.serving.lookout import Lookout
from eagleray.serving.readers import Readers
from eagleray.serving.reconcile import Action, Apply, Delete, Fail, Retry, Seen, ailing, carry_out, decide
from eagleray.serving.replica.listening import frame_bytes
from eagleray.serving.serve_control_ray260 import App, ServeControl
from eagleray.serving.services import LINK_KEY_BYTES, Record, ServedVersion, is_ours
from eagleray.serving.state import IngressState
from eagleray.specs import ServiceSpec

if TYPE_CHECKING:
    from eagleray.packaging.store import ModelStore
    from eagleray.registry.runs import TrackedRuns

Result = TypeVar("Result")
_BUSY_S, _QUIET_S, _RETRY_S = 0.2, 2.0, 1.0
_ALIASES_S = 15.0
_DRAIN_MARGIN_S = 5.0
_LONGEST_WATCH_S = 15.0
_log = logging.getLogger(__name__)


class Controller:
    """For one event loop. What blocks runs in a thread: Serve's calls in one, the registry's in another."""

    def __init__(self, settings: ControllerSettings) -> None:
        self.settings = settings
        self.started_s = time.time()
        self.record = Record()
        self.catalog = Catalog(self.open_store, self.open_runs)
        self.trouble = "it is starting"
        """Why requests are not answered; empty where they are."""
        self._is_loaded = False
        self._serve = self.connect()
        self._serve_thread = ThreadPoolExecutor(1, "serve")
        self._readers = Readers()
        self._lookout = Lookout(identity_ray260.is_gone, self.leave)
        self.accounts = Accounts(lambda: self.in_effect().gateway.number, identity_ray260.is_gone)
        self._changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._plane = ControlPlane(self)
        self._aliases_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take over what is on disk, and begin to see to it."""
        self._load()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """See to nothing any more; what runs goes on."""
        if self._task is not None:
            self._task.cancel()

    async def ping(self) -> dict[str, Any]:
        """Who this is, and what keeps requests from being answered."""
        return {
            "version": __version__,
            "cluster": self.settings.cluster,
            "url": self.settings.url,
            "is_key_needed_for_infer": self.settings.is_key_needed_for_infer,
            "trouble": self.trouble,
            "is_ending": self._ending is not None,
        }

    async def admin(self, method: str, arguments: Sequence[Any]) -> dict[str, Any]:
        """{"result", "revision"} of a method of AdminBackend, or {"error": {"kind", "message"}}."""
        try:
            if not self._is_loaded or self._ending is not None:
                raise ServiceError(self.trouble)  # what is committed after `_end` would be served again
            result = await getattr(self._plane, method)(*arguments)
            return {"result": result, "revision": self.record.revision}
        except EaglerayError as error:
            return {"error": {"kind": type(error).__name__, "message": str(error)}}
        except Exception as error:  # ours to mend; as it is it might not survive the way to the ingress
            _log.exception("serving: %s failed", method)
            reason = " ".join(str(error).split())[:300]
            message = f"the serving controller failed: {type(error).__name__}: {reason}; its log says where"
            return {"error": {"kind": "ServiceError", "message": message}}

    async def watch(
        self, reader: str, known: int, drained: Sequence[str], wait_s: float
    ) -> dict[str, Any] | None:
        """{"revision", "state", "draining", …} as soon as the revision is not `known`; None after `wait_s`.

        Args:
            reader: The ingress that asks, as `identity_ray260` names it.
            known: The revision that it has.
            drained: Of the applications in "draining", those that it has nothing under way on.
            wait_s: How long to wait for a change.
        """
        self._readers.heard(reader, drained, time.monotonic())
        if drained:
            self._wake.set()
        if known == self.record.revision or not self._is_loaded:
            try:
                async with asyncio.timeout(min(wait_s, _LONGEST_WATCH_S)):
                    await self._changed.wait()
            except TimeoutError:
                return None
        return {
            "revision": self.record.revision,
            "state": self.ingress_state().to_json(),
            "draining": self.record.draining,
            "starts": self.record.starts,
            "ailing": {app: asdict(trouble) for app, trouble in self.record.ailing.items()},
            "settings": self.in_effect().to_json(),
            "links": self.links(),
        }

    def leave(self, reader: str) -> None:
        """That ingress has ended: what it held of limits is free, and no version is kept for it."""
        self.accounts.leave(reader)
        self._readers.forget(reader)
        self._wake.set()

    def in_effect(self) -> ControllerSettings:
        """The settings with what an operator asked of the gateways since."""
        return replace(self.settings, gateway=self.record.gateways.carried_out(self.settings.gateway))

    @property
    def are_gateways_as_asked(self) -> bool:
        """Whether all of them run, and none of an earlier order."""
        return not self.trouble and self.record.applied.get(INGRESS_APP) == self._wanted_ingress()

    def links(self) -> dict[str, Any]:
        """What gateways and replicas have to agree on; with the cluster's key, so for them alone."""
        return {
            "key": self.record.link_key,
            "max_frame_bytes": frame_bytes(self.settings.limits.max_body_bytes),
        }

    def ingress_state(self) -> IngressState:
        """What every ingress is to know now."""
        return IngressState(
            routes=self.record.routes(),
            keys=self.record.keys,
            is_key_needed_for_infer=self.settings.is_key_needed_for_infer,
            limits=self.settings.limits,
        )

    def commit(self, record: Record) -> None:
        """Write the record down, then let the ingresses and the loop know."""
        if _shown(record) != _shown(self.record):
            record = replace(record, revision=self.record.revision + 1)
        if record == self.record:
            return
        memory.save(self.settings.record_path, record)
        is_news = record.revision != self.record.revision
        self.record = record
        self._wake.set()
        if is_news:
            self._changed.set()
            self._changed = asyncio.Event()

    async def in_serve_thread(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """What a blocking call to Serve returns."""
        return await asyncio.get_running_loop().run_in_executor(self._serve_thread, call, *arguments)

    async def num_replicas(self) -> Mapping[str, int]:
        """How many replicas of each application answer."""
        return await self.in_serve_thread(self._serve.num_replicas)

    async def decisions(self) -> Mapping[str, Mapping[str, Any]]:
        """The last decision on the replicas of each application: wanted, runs, reason, at."""
        return await self.in_serve_thread(self._serve.decisions)

    async def end(self) -> None:
        """End all that this controller started on the cluster, and forget what it was to serve.

        Asked again, it goes on: with the same where the caller before gave up, anew where that failed.
        """
        self.stop()
        if self._ending is None or (self._ending.done() and self._ending.exception()):
            self._ending = asyncio.get_running_loop().create_task(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        self.trouble = "it is being taken down"
        await self.in_serve_thread(self._serve.forget)  # somebody may have ended the Serve that is known
        if await self.in_serve_thread(self._serve.is_running):
            seen = await self.in_serve_thread(self._serve.observe)
            ours = set(filter(is_ours, seen))
            self.trouble = f"Serve is ending {', '.join(sorted(ours))}"
            if self.record.has_started_serve and len(ours) == len(seen):
                await self.in_serve_thread(self._serve.shut_down)
            else:
                await self.in_serve_thread(self._serve.delete, sorted(ours))
                while left := ours & set(await self.in_serve_thread(self._serve.observe)):
                    self.trouble = f"Serve is ending {', '.join(sorted(left))}"
                    await asyncio.sleep(_BUSY_S)
        memory.forget(self.settings.record_path)

    # The loop.

    async def _run(self) -> None:
        is_started = False
        while True:
            self._wake.clear()
            try:
                if not self._is_loaded:
                    self._load()
                if self._is_loaded and not is_started:
                    if await self.in_serve_thread(self._serve.start):
                        self.commit(replace(self.record, has_started_serve=True))
                    is_started = True
                is_settled = not self._is_loaded or await self._tick()
                wait_s = _QUIET_S if is_settled else _BUSY_S
            except Exception as error:  # Serve or the GCS is away: the next round finds out what is left
                self.trouble = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
                _log.warning("serving: %s", self.trouble)
                await self.in_serve_thread(self._serve.forget)
                is_started, wait_s = False, _RETRY_S
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _load(self) -> None:
        """Read the record; one that cannot be read is trouble until somebody has seen to it."""
        try:
            self.record = memory.load(self.settings.record_path)
            keys = self.record.keys
            if self.settings.admin_key_path:
                keys = memory.ensure_admin_key(self.settings.admin_key, keys)
            self._is_loaded = True
            link_key = self.record.link_key or secrets.token_hex(LINK_KEY_BYTES)
            self.commit(replace(self.record, keys=keys, link_key=link_key))
            self.trouble = "Serve is starting"
        except (ServiceError, OSError) as error:
            self._is_loaded = False
            self.trouble = str(error)

    async def _tick(self) -> bool:
        """Look once, and do what is to be done; returns whether everything is as it should be."""
        seen = await self.in_serve_thread(self._serve.observe)
        await self._see_to_ingress(seen.get(INGRESS_APP))
        now_s = time.time()
        if self.record.draining:
            self._lookout.look(self._readers.quiet(time.monotonic()))
        drained = self._readers.drained(time.monotonic())
        limit_s = self.settings.limits.timeout_s + _DRAIN_MARGIN_S
        actions: list[Action] = []
        record = self.record
        while found := decide(record, seen, drained, now_s, drain_limit_s=limit_s):
            for action in found:
                _log.info("serving: %s", _in_words(action))
                record = carry_out(record, action, now_s)
            actions += found
            if any(isinstance(action, Apply | Delete | Fail | Retry) for action in found):
                break  # Serve has to be told, and looked at again
        self.commit(replace(record, ailing=ailing(record, seen)))
        await self._tell_serve(actions)
        await self._refresh_aliases()
        return self.record.is_settled and not self.trouble and not actions

    async def _tell_serve(self, actions: Sequence[Action]) -> None:
        applies = [action for action in actions if isinstance(action, Apply)]
        deletes = [action.app for action in actions if isinstance(action, Delete | Retry)]
        if deletes:
            await self.in_serve_thread(self._serve.delete, deletes)
        if not applies:
            return
        try:
            await self.in_serve_thread(self._apply, lambda: [self.app_of(one.served) for one in applies])
        except BaseException as error:
            self._not_applied(applies, error)
            raise

    def _apply(self, build: Callable[[], Sequence[App]]) -> None:
        """Build and hand over, in the one thread that speaks to Serve.

        Ray 2.60 registers modules with its pickler while it makes a deployment's options or reads a status,
        and takes them out afterwards: two threads at once take out what the other still needs.
        """
        self._serve.apply(build())

    def _not_applied(self, applies: Sequence[Apply], error: BaseException) -> None:
        """Nothing was handed over; what Serve itself refused would be refused again."""
        record = self.record
        for action in applies:
            applied = {app: print_ for app, print_ in record.applied.items() if app != action.served.app}
            record = replace(record, applied=applied)
            is_wanted = record.serves(action.served.name, action.served.version)
            if is_wanted and isinstance(error, ValueError | TypeError):
                fail = Fail(action.served.name, action.served.version, f"Serve refuses it: {error}")
                record = carry_out(record, fail, time.time())
        self.commit(record)

    async def _see_to_ingress(self, seen: Seen | None) -> None:
        wanted = self._wanted_ingress()
        if seen is None or (self.record.applied.get(INGRESS_APP) != wanted and seen.status != "deleting"):
            await self.in_serve_thread(self._apply, lambda: [self.ingress()])
            self.commit(replace(self.record, applied={**self.record.applied, INGRESS_APP: wanted}))
            self.trouble = "the ingress is starting"
        elif seen.status == "running":
            is_open = not self.trouble or await asyncio.to_thread(self.is_open)
            self.trouble = "" if is_open else "the ingress does not answer yet"
        else:
            self.trouble = f"the ingress is {seen.status} {seen.message}".strip()

    def _wanted_ingress(self) -> str:
        settings, restarts = self.in_effect(), self.record.gateways.restarts
        return f"{ingress_app.fingerprint(settings, restarts)} x {settings.gateway.number}"

    async def _refresh_aliases(self) -> None:
        """Take over what others changed in the registry; a registry that is down changes nothing."""
        if not self.record.services or time.monotonic() - self._aliases_s < _ALIASES_S:
            return
        self._aliases_s = time.monotonic()
        for name in list(self.record.services):
            try:
                aliases = await self.catalog.aliases(name)
            except (EaglerayError, OSError) as error:
                _log.warning("serving: the aliases of %s cannot be read: %s", name, error)
                continue
            service = self.record.services.get(name)
            if service is not None and aliases != service.aliases:
                self.commit(self.record.with_service(name, replace(service, aliases=aliases)))

    # What a test does otherwise.

    def connect(self) -> ServeControl:
        """The way to Serve."""
        return ServeControl(self.settings.serve_port)

    def open_store(self) -> ModelStore:
        """The registry."""
        from eagleray.registry.models import MlflowModels

        return MlflowModels(self.settings.tracking_uri, self.settings.storage_url)

    def open_runs(self) -> TrackedRuns:
        """What MLflow knows of runs."""
        from eagleray.registry.runs import TrackedRuns

        return TrackedRuns(self.settings.tracking_uri, self.settings.storage_url)

    def app_of(self, served: ServedVersion) -> App:
        """What Serve is handed for a model version."""
        return model_app.app_of(served, self.links())

    def ingress(self) -> App:
        """What Serve is handed for the ingress."""
        settings = self.in_effect()
        version = ingress_app.fingerprint(settings, self.record.gateways.restarts)
        return App(INGRESS_APP, ingress_app.build(settings), version)

    def is_open(self) -> bool:
        """Whether the ingress answers at its address; of other nodes' gateways Serve alone knows."""
        return bool(self.settings.gateway.labels) or answers(f"{self.settings.url}/v2/health/live")

    def require_capacity(self, spec: ServiceSpec) -> None:
        """Raises: CapacityError where no node that there can be would hold a replica."""
        from eagleray.cluster import capacity_ray260

        bundles = [spec.resources] * max(1, spec.min_replicas)
        capacity_ray260.require(bundles, spec.label_selector, noun="replica")


def _shown(record: Record) -> Any:
    """What an ingress sees of the record."""
    return record.services, record.keys, record.draining, record.ailing, record.gateways


def _in_words(action: Action) -> str:
    what = type(action).__name__.lower()
    if isinstance(action, Apply):
        return f"{what} {action.served.app}"
    return " ".join([what, *(str(value) for value in vars(action).values())])
