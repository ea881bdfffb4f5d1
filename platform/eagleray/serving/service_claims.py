"""The claims of all services, one for each, in Serve's controller: asked ten times a second, never blocking.

A thread opens, states and closes them. How many replicas a service may run is read from memory; so is where
they are to start, and which are to go first (`serve_scaling_ray260` asks).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from eagleray.capacity import ClaimClient, Request, Units
from eagleray.cluster.holding import Holding
from eagleray.cluster.ledger_client import LedgerClient
from eagleray.serving.services import APP_PREFIX

_EVERY_S = 1.0
_FIND_EVERY_S = 2.0
"""A ledger may be started after the first service."""
_PATIENCE_S = 5.0
"""A service does not grow for so long at most because the ledger has not answered yet."""
_SILENCE_S = 1.5
"""A service of which Serve has not asked for so long may have been deleted."""
_HELD_UP_S = 180.0
"""A replica that Serve has to start waits for its grant for so long: a node may have to come up in a cloud.
From then on it waits for any room, in Ray."""
_UNKNOWN_S = 1.0
"""Serve may have to start a replica before it has asked how many there may be."""
_YIELD_S = 60.0
"""Serve lets a replica finish what it has begun for so long."""
_log = logging.getLogger(__name__)
Replica = TypeVar("Replica")
ANYWHERE = ""
"""In place of a node's id."""


@dataclass(frozen=True)
class Ask:
    """What a service asks for."""

    app: str
    """Its Serve application."""
    bundle: Mapping[str, float]
    label_selector: Mapping[str, str]
    floor: int
    wanted: int
    """Replicas that its requests need."""

    def request(self, present: int) -> Request:
        """As the ledger takes it. While a version's replicas replace those of another, more are `present`."""
        return Request.service(
            f"serve:{self.app}",
            words(self.app),
            self.bundle,
            floor=self.floor,
            wanted=max(self.wanted, present),
            label_selector=self.label_selector,
            yield_s=_YIELD_S,
        )


@dataclass(frozen=True)
class Replicas:
    """The replicas that Serve has of a service."""

    staying: Units = field(default_factory=dict)
    """By node id: those that run there, or have been sent there to start."""
    stopping: Units = field(default_factory=dict)
    """They finish what they have begun, and take their room until then."""
    unplaced: int = 0
    """Of those that start: on no node yet."""
    is_recovering: bool = False
    """Serve's controller has just been started again, and does not know yet where they are."""

    @property
    def used(self) -> Counter[str]:
        """By node id."""
        return Counter(self.staying) + Counter(self.stopping)

    @property
    def present(self) -> int:
        """Without those that stop."""
        return sum(self.staying.values()) + self.unplaced


Look = Callable[[], Replicas | None]
"""The replicas of a service as Serve has them now, for another thread; None where it has been deleted."""


@dataclass
class _Service:
    ask: Ask
    replicas: Replicas
    look: Look
    first_s: float
    called_s: float
    holding: Holding | None = None
    bundle: Mapping[str, float] = field(default_factory=dict)
    """With which the claim was opened."""
    refused: str = ""
    waits_s: float | None = None
    """Since when a replica waits for its grant."""


class ServiceClaims:
    """All claims of the services of one Serve. `round` is for one thread, all the rest for another."""

    def __init__(self, find: Callable[[], ClaimClient | None], clock: Callable[[], float] = time.monotonic):
        """Args: find: The ledger, or None where the cluster has none. clock: Seconds."""
        self._find, self._clock = find, clock
        self._client: ClaimClient | None = None
        self._has_looked = False
        self._find_s = 0.0
        self._services: dict[str, _Service] = {}
        self._unknown: dict[str, float] = {}
        """When a replica of an application was to be started of which Serve had not asked yet."""
        self._news = threading.Event()

    def granted(self, ask: Ask, replicas: Replicas, *, meanwhile: int, look: Look) -> int | None:
        """How many replicas the service may run; None where no ledger says.

        Args:
            ask: What it asks for from now on.
            replicas: What it has.
            meanwhile: The answer as long as it may be that the ledger has just not been heard yet.
            look: For the time after the last call.
        """
        now_s = self._clock()
        service = self._services.get(ask.app)
        if service is None:
            service = self._services[ask.app] = _Service(ask, replicas, look, now_s, now_s)
            self._unknown.pop(ask.app, None)
            self._news.set()
        elif (service.ask, service.replicas) != (ask, replicas):
            service.ask, service.replicas = ask, replicas
            self._news.set()
        service.look, service.called_s = look, now_s
        if not replicas.unplaced:
            service.waits_s = None
        governs = self._governs(service, now_s)
        if governs and service.holding is not None:
            return service.holding.allotment.size
        return meanwhile if governs is None else None

    def _governs(self, service: _Service, now_s: float) -> bool | None:
        """Whether the ledger says what the service may run; None: that will show in a moment."""
        holding = service.holding
        if holding is not None and holding.refusal is None and holding.is_answered:
            return True
        is_none = self._has_looked and self._client is None
        is_late = now_s - service.first_s > _PATIENCE_S
        return False if is_none or service.refused or is_late else None

    def place(self, app: str, taken: Counter[str]) -> str | None:
        """Where a replica is to start: the id of a node on which it was granted, or ANYWHERE; None: not yet.

        What Ray cannot place at once it asks a node for, and the ledger would have asked for one, too.

        Args:
            app: Its Serve application.
            taken: Replicas that run or have been sent to start, by node id.
        """
        now_s = self._clock()
        service = self._services.get(app)
        if service is None:
            first_s = self._unknown.setdefault(app, now_s)
            return None if app.startswith(APP_PREFIX) and now_s - first_s < _UNKNOWN_S else ANYWHERE
        there = taken + Counter(service.replicas.stopping)
        units = service.holding.allotment.units if service.holding is not None else {}
        if node := next((node for node in sorted(units) if units[node] > there[node]), ""):
            service.waits_s = None
            return node
        if service.waits_s is None:
            service.waits_s = now_s
        is_governed = self._governs(service, now_s) is not False
        return None if is_governed and now_s - service.waits_s < _HELD_UP_S else ANYWHERE

    def leaving(self, app: str, running: Mapping[Replica, str]) -> list[Replica]:
        """The replicas that a notice asks for, the newest first.

        Args:
            app: Its Serve application.
            running: Node ids, the oldest replica first.
        """
        service = self._services.get(app)
        allotment = service.holding.allotment if service is not None and service.holding is not None else None
        if allotment is None or allotment.deadline_s is None:
            return []
        kept, found = Counter(allotment.units), list[Replica]()
        for replica, node in running.items():
            kept[node] -= 1
            if kept[node] < 0:
                found.append(replica)
        return found[::-1]

    def keep(self) -> None:
        """See to the claims for ever."""
        while True:
            self._news.wait(_EVERY_S)
            self._news.clear()
            try:
                self.round()
            except Exception:  # the services go on with what they were granted
                _log.exception("the claims of the services could not be stated; trying again")

    def round(self) -> None:
        """Open, state and close what is to be."""
        now_s = self._clock()
        if self._client is None and now_s >= self._find_s:
            self._client, self._has_looked = self._find(), True
            self._find_s = now_s + _FIND_EVERY_S
        for app, service in list(self._services.items()):
            if now_s - service.called_s > _SILENCE_S:
                found = service.look()
                if found is None:
                    del self._services[app]
                    if service.holding is not None:
                        service.holding.close()
                    continue
                service.replicas = found
                if not found.present:  # it is being deleted; its last replicas still work
                    service.ask = replace(service.ask, floor=0, wanted=0)
            if self._client is not None:
                self._tend(service, self._client, now_s)

    def _tend(self, service: _Service, client: ClaimClient, now_s: float) -> None:
        ask, replicas = service.ask, service.replicas
        if service.holding is not None and service.bundle != ask.bundle:
            service.holding.close()  # a claim is of one bundle
            service.holding = None
        request = ask.request(replicas.present)
        if service.holding is None:
            if replicas.is_recovering and now_s - service.first_s < _PATIENCE_S:
                return  # what is not stated would be taken for others' work
            service.bundle = ask.bundle
            service.holding = Holding(client, request, used=replicas.used, heard=lambda _: self._news.set())
            return
        holding = service.holding
        holding.state(request=request, used=replicas.used)
        meant = max(replicas.present, min(ask.wanted, holding.allotment.size))
        if units := spare(holding.held, holding.allotment.units, replicas, meant):
            holding.give_back(units)
        refused = str(holding.refusal or "")
        if refused and refused != service.refused:
            _log.warning("%s: scaled without the ledger, which refuses: %s", ask.app, refused)
        service.refused = refused


def spare(held: Units, allotted: Units, replicas: Replicas, meant: int) -> Counter[str]:
    """What a service does not need of what it holds, by node id.

    Args:
        held: By node id.
        allotted: What it may go on with: less than `held` where a notice asks for some.
        replicas: What it has.
        meant: How many replicas it is to have.
    """
    free = Counter(held) - replicas.used
    num_spare = free.total() - max(0, meant - sum(replicas.staying.values()))
    leaving = free & (Counter(held) - Counter(allotted))
    found = Counter[str]()
    for node in [*sorted(leaving.elements()), *sorted((free - leaving).elements())][: max(0, num_spare)]:
        found[node] += 1
    return found


def words(app: str) -> str:
    """A service as people know it: "service digits version 3"."""
    name, _, version = app.removeprefix(APP_PREFIX).rpartition("--v")
    return f"service {name} version {version}" if app.startswith(APP_PREFIX) and name else f"service {app}"


_lock = threading.Lock()
_mine: list[ServiceClaims] = []


def of_this_process() -> ServiceClaims:
    """The claims of the services of the Serve whose controller this process is."""
    with _lock:
        if not _mine:
            _mine.append(ServiceClaims(LedgerClient.find))
            threading.Thread(target=_mine[0].keep, name="claims of services", daemon=True).start()
        return _mine[0]
