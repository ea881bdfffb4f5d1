"""Gates before replicas that batch what they have, on a clock of its own.

What a request meets is told as replicas tell it (how long it waited there, how long its batch took), comes
some time after it was sent, and a replica is slower than its batches say: as between real processes. A
gateway may have a core of its own, on which it does one thing after the other.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.admission.gate import Gate
from eagleray.serving.admission.limits import Account
from eagleray.serving.admission.refusal import Refusal
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.link.frames import Timings

SAMPLES, MOST = 4, 32
"""Of a request, of a batch."""
TRIP_S = 0.0003
"""One way."""


@dataclass(frozen=True)
class Costs:
    """Seconds that things take."""

    fixed_s: float = 0.004
    """Of a batch."""
    each_s: float = 0.0004
    """Of each of its samples."""
    besides_s: float = 0.001
    """Of a batch, of what no timing shows."""
    refused_s: float = 0.0
    """Of the gateway's core, for the head of a request."""
    served_s: float = 0.0
    """The same, for all of a request: half of what is more before it is sent, and half for its answer."""
    lands: float = 0.0
    """Which part of what a gateway computes the replica's core does, and no batch meanwhile."""

    @property
    def capacity(self) -> float:
        """Requests per second of one replica that is always full."""
        return MOST / SAMPLES / (self.fixed_s + MOST * self.each_s + self.besides_s)


COSTS = Costs()
CAPACITY = COSTS.capacity
WEIGHTS = {"one": 1, "two": 2, "three": 3}


class Asked:
    """One request."""

    def __init__(self, gate: Gate, ticket: Ticket, sent: Callable[[Asked], None]) -> None:
        self.gate, self.ticket, self.sent = gate, ticket, sent
        self.arrived_s = 0.0


class Replica:
    """Takes what it has, up to a batch, whenever it is free."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.waiting: list[Asked] = []
        self.is_busy = self.is_lost = False
        self.held_up_s = 0.0
        """So long others had its core since its batch began."""
        self.sizes: list[int] = []
        """Of its batches."""

    def take(self, asked: Asked) -> None:
        asked.arrived_s = self.world.now_s
        self.waiting.append(asked)
        if not self.is_busy:
            self.run()

    def run(self) -> None:
        world, costs, most = self.world, self.world.costs, MOST // SAMPLES
        waiting = [asked for asked in self.waiting if not asked.ticket.is_closed]
        batch, self.waiting = waiting[:most], waiting[most:]
        self.is_busy, self.held_up_s = bool(batch), 0.0
        if batch:
            began_s, size = world.now_s, SAMPLES * len(batch)
            self.sizes.append(size)
            pass_s = (costs.fixed_s + costs.each_s * size) * world.rng.uniform(0.85, 1.15)
            world.at(pass_s + costs.besides_s, lambda: self.end(batch, began_s, pass_s, size))

    def end(self, batch: list[Asked], began_s: float, pass_s: float, size: int) -> None:
        """So much work is done of it as it takes: but for what others had the core for meanwhile."""
        late_s, self.held_up_s = self.held_up_s, 0.0
        if late_s:
            self.world.at(late_s, lambda: self.end(batch, began_s, pass_s + late_s, size))
        else:
            self.done(batch, began_s, pass_s, size)

    def done(self, batch: list[Asked], began_s: float, pass_s: float, size: int) -> None:
        if not self.is_lost:
            for one in batch:
                waited_s = began_s - one.arrived_s
                self.world.at(TRIP_S, lambda one=one, waited_s=waited_s: answer(one, waited_s))
            self.run()

        def answer(asked: Asked, waited_s: float) -> None:
            if not asked.ticket.is_closed:
                took = Timings(round(waited_s * 1e6), 0, round(pass_s * 1e6), 0, size)
                self.world.answered(asked, took)


class World:
    """Gates, replicas, keys and a clock."""

    def __init__(
        self, *, replicas: int = 1, gateways: int = 1, max_queued: int = 1000, costs: Costs = COSTS
    ) -> None:
        self.costs = costs
        self.rng = random.Random(1)
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._serial = 0
        self.replicas = [Replica(self) for _ in range(replicas)]
        self.gates = [Gate("model 'm' version 1", max_queued=max_queued) for _ in range(gateways)]
        self.arrange()
        self.accounts: dict[str, Account] = {}
        self._free_s = dict.fromkeys(self.gates, 0.0)
        self.ok: Counter[str] = Counter()
        self.by_gate: Counter[Gate] = Counter()
        self.refused: Counter[str] = Counter()
        self.expired: Counter[str] = Counter()
        self.took_s: list[float] = []

    def at(self, delay_s: float, what: Callable[[], object]) -> None:
        self._serial += 1
        heapq.heappush(self._events, (self.now_s + delay_s, self._serial, what))

    def compute(self, gate: Gate, cost_s: float, then: Callable[[], object]) -> None:
        """Do so much on a gateway's core, after all that it has to do, and then this."""
        if not self.costs.served_s:
            then()
            return
        for replica in self.replicas:
            replica.held_up_s += cost_s * self.costs.lands
        self._free_s[gate] = max(self.now_s, self._free_s[gate]) + cost_s
        self.at(self._free_s[gate] - self.now_s, then)

    def arrange(self) -> None:
        for gate in self.gates:
            gate.arrange([2 * MOST] * len(self.replicas), len(self.gates), self.now_s)

    def key(self, name: str, per_s: float, objective_s: float, **terms: Any) -> None:
        self.accounts[name] = Account(name, name, KeyTerms(**terms), 1.0, 0.0)
        self.at(self.rng.expovariate(per_s), lambda: self.arrive(name, per_s, objective_s))

    def run(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, what = heapq.heappop(self._events)
            what()
        self.now_s = until_s

    def forget(self) -> None:
        """What was until now counts no more."""
        self.ok, self.refused, self.expired, self.took_s = Counter(), Counter(), Counter(), []
        self.by_gate = Counter()

    def arrive(self, name: str, per_s: float, objective_s: float) -> None:
        self.at(self.rng.expovariate(per_s), lambda: self.arrive(name, per_s, objective_s))
        gate = self.rng.choice(self.gates)
        self.compute(gate, self.costs.refused_s, lambda: self.admit(gate, name, objective_s))

    def admit(self, gate: Gate, name: str, objective_s: float) -> None:
        account = self.accounts[name]
        if (refusal := gate.refused(account, objective_s)) is not None:
            assert refusal.headers["retry-after-ms"]
            self.refused[name] += 1
            return
        ticket = Ticket(account, None, self.now_s, self.now_s + objective_s)
        ticket.cost = SAMPLES
        asked = Asked(gate, ticket, self.send)
        ticket.on_end = lambda refusal: self.expire(asked, refusal)
        self.at(objective_s, lambda: self.expire(asked))
        self.compute(gate, self._rest_s, lambda: gate.enter(ticket, lambda _: self.send(asked)))

    @property
    def _rest_s(self) -> float:
        return (self.costs.served_s - self.costs.refused_s) / 2

    def send(self, asked: Asked) -> None:
        """To the less busy of two, as a pool's links."""
        two = self.rng.sample(self.replicas, min(2, len(self.replicas)))
        self.at(TRIP_S, lambda: min(two, key=lambda one: len(one.waiting)).take(asked))

    def answered(self, asked: Asked, took: Timings) -> None:
        self.compute(asked.gate, self._rest_s, lambda: self.told(asked, took))

    def told(self, asked: Asked, took: Timings) -> None:
        if asked.ticket.is_closed:
            return
        asked.ticket.answered(self.now_s, took)
        self.took_s.append(self.now_s - asked.ticket.began_s)
        self.ok[asked.ticket.account.name] += 1
        self.by_gate[asked.gate] += 1
        asked.ticket.close(self.now_s)

    def expire(self, asked: Asked, refusal: Refusal | None = None) -> None:
        assert refusal is None or refusal.status == 504
        if not asked.ticket.is_closed:
            self.expired[asked.ticket.account.name] += 1
            asked.ticket.close(self.now_s)

    def lose(self, replica: Replica) -> None:
        """With all that it has; the gates are told a moment later."""
        replica.is_lost = True
        self.replicas.remove(replica)
        lost, replica.waiting = replica.waiting, []
        for asked in lost:
            self.send(asked)
        self.at(0.05, self.arrange)

    def add(self) -> None:
        self.replicas.append(Replica(self))
        self.arrange()


def overloaded(world: World, *, objective_s: float = 0.5, times: float = 3.0) -> None:
    """Each of three keys asks for as much as there is."""
    for name, weight in WEIGHTS.items():
        per_s = times * world.costs.capacity * len(world.replicas) / len(WEIGHTS)
        world.key(name, per_s, objective_s, weight=weight)
