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

    @property
    def claim(self) -> str:
        """Its id. A claim is of one bundle: with another setting of its resources a service has another."""
        amounts = ",".join(f"{name}={amount:g}" for name, amount in sorted(self.bundle.items()) if amount > 0)
        return f"serve:{self.app}:{amounts}"

    def request(self, present: int) -> Request:
        """As the ledger takes it. While a version's replicas replace those of another, more are `present`."""
        return Request.service(
            self.claim,
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
    former: Units = field(default_factory=dict)
    """Not among all these: replicas with other resources than are asked for now, until others answer."""
    former_stopping: Units = field(default_factory=dict)

    @property
    def used(self) -> Counter[str]:
        """By node id."""
        return Counter(self.staying) + Counter(self.stopping)

    @property
    def used_by_former(self) -> Counter[str]:
        """By node id."""
        return Counter(self.former) + Counter(self.former_stopping)

    @property
    def present(self) -> int:
        """Without those that stop, and those of another setting."""
        return sum(self.staying.values()) + self.unplaced


Look = Callable[[], Replicas | None]
"""The replicas of a service as Serve has them now, for another thread; None where it has been deleted."""


@dataclass(frozen=True)
class _Said:
    """What Serve said last, in one: each is of no use beside another's."""

    ask: Ask
    replicas: Replicas
    look: Look


@dataclass(frozen=True)
class _Claim:
    holding: Holding
    request: Request
    """With which it was opened."""


@dataclass
class _Service:
    said: _Said
    first_s: float
    """When it was first asked for, with these resources."""
    called_s: float
    claim: _Claim | None = None
    former: tuple[_Claim, ...] = ()
    """With other resources; each until the last replica of it has gone."""
    refused: str = ""
    waits_s: float | None = None
    """Since when a replica waits for its grant."""

    @property
    def holding(self) -> Holding | None:
        """Of the resources that are asked for; read it once: another thread sets it."""
        claim = self.claim
        return claim.holding if claim is not None and claim.request.claim == self.said.ask.claim else None


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
        service, said = self._services.get(ask.app), _Said(ask, replicas, look)
        if service is None:
            service = self._services[ask.app] = _Service(said, now_s, now_s)
            self._unknown.pop(ask.app, None)
            self._news.set()
        else:
            before, service.said = service.said, said
            if before.ask.claim != ask.claim:
                service.first_s = now_s
            if (before.ask, before.replicas) != (ask, replicas):
                self._news.set()
        service.called_s = now_s
        if not replicas.unplaced:
            service.waits_s = None
        holding = service.holding
        governs = self._governs(service, holding, now_s)
        if governs and holding is not None:
            former = sum(claim.holding.allotment.size for claim in service.former)
            return holding.allotment.size + min(former, sum(replicas.former.values()))
        return meanwhile if governs is None else None

    def _governs(self, service: _Service, holding: Holding | None, now_s: float) -> bool | None:
        """Whether the ledger says what the service may run; None: that will show in a moment."""
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
        replicas, holding = service.said.replicas, service.holding
        there = taken + Counter(replicas.stopping) - Counter(replicas.former)
        units = holding.allotment.units if holding is not None else {}
        if node := next((node for node in sorted(units) if units[node] > there[node]), ""):
            service.waits_s = None
            return node
        if service.waits_s is None:
            service.waits_s = now_s
        is_governed = self._governs(service, holding, now_s) is not False
        return None if is_governed and now_s - service.waits_s < _HELD_UP_S else ANYWHERE

    def leaving(self, app: str, running: Mapping[Replica, str]) -> list[Replica]:
        """The replicas that a notice asks for, the newest first.

        Args:
            app: Its Serve application.
            running: Node ids, the oldest replica first.
        """
        service = self._services.get(app)
        if service is None:
            return []
        former, holding = service.former, service.holding
        holdings = [*(claim.holding for claim in former), *([holding] if holding is not None else [])]
        allotments = [holding.allotment for holding in holdings]
        if all(allotment.deadline_s is None for allotment in allotments):
            return []
        kept, found = Counter[str](), list[Replica]()
        for allotment in allotments:
            kept += Counter(allotment.units)
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
                said = service.said
                found = said.look()
                if found is None:
                    del self._services[app]
                    for claim in (*service.former, *([service.claim] if service.claim else [])):
                        claim.holding.close()
                    continue
                ask = said.ask
                if not found.present:  # it is being deleted; its last replicas still work
                    ask = replace(ask, floor=0, wanted=0)
                service.said = _Said(ask, found, said.look)
            if self._client is not None:
                self._tend(service, self._client, now_s)

    def _tend(self, service: _Service, client: ClaimClient, now_s: float) -> None:
        ask, replicas = service.said.ask, service.said.replicas
        request = ask.request(replicas.present)
        if service.claim is not None and service.claim.request.claim != request.claim:
            service.former, service.claim = (*service.former, service.claim), None
        if service.claim is None:
            again = next((claim for claim in service.former if claim.request.claim == request.claim), None)
            if again is None and replicas.is_recovering and now_s - service.first_s < _PATIENCE_S:
                return  # what is not stated would be taken for others' work
            service.refused = ""
            service.claim = again or _Claim(
                Holding(client, request, used=replicas.used, heard=lambda _: self._news.set()), request
            )
            service.former = tuple(claim for claim in service.former if claim is not again)
            self._end_former(service, replicas)
            return
        self._end_former(service, replicas)
        holding = service.claim.holding
        holding.state(request=request, used=replicas.used)
        meant = max(replicas.present, min(ask.wanted, holding.allotment.size))
        if units := spare(holding.held, holding.allotment.units, replicas, meant):
            holding.give_back(units)
        refused = str(holding.refusal or "")
        if refused and refused != service.refused:
            _log.warning("%s: scaled without the ledger, which refuses: %s", ask.app, refused)
        service.refused = refused

    def _end_former(self, service: _Service, replicas: Replicas) -> None:
        """Give back what has ended of earlier settings: what still runs there holds its room."""
        for claim in service.former:
            held = Counter(claim.holding.held)
            used = held & replicas.used_by_former
            if not used:
                claim.holding.close()
                service.former = tuple(other for other in service.former if other is not claim)
                continue
            num, floor = used.total(), claim.request.minimum
            claim.holding.state(
                request=replace(claim.request, minimum=min(floor, num), wanted=num), used=used
            )
            if units := held - used:
                claim.holding.give_back(units)


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
