"""Three times too much, on a clock of its own: gates before replicas that batch what they have.

What a request meets is told as replicas tell it (how long it waited there, how long its batch took), comes
some time after it was sent, and a replica is slower than its batches say: as between real processes.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.admission.deadline import MARGIN
from eagleray.serving.admission.gate import Gate
from eagleray.serving.admission.limits import Account
from eagleray.serving.admission.refusal import Refusal
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.admission.window import OPEN, Window
from eagleray.serving.link.frames import Timings

SAMPLES, MOST = 4, 32
"""Of a request, of a batch."""
FIXED_S, EACH_S, BESIDES_S, TRIP_S = 0.004, 0.0004, 0.001, 0.0003
"""Of a batch, of each of its samples, of what no timing shows, one way."""
FULL_S = FIXED_S + MOST * EACH_S + BESIDES_S
CAPACITY = MOST / SAMPLES / FULL_S
"""Requests per second of one replica that is always full."""
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

    def take(self, asked: Asked) -> None:
        asked.arrived_s = self.world.now_s
        self.waiting.append(asked)
        if not self.is_busy:
            self.run()

    def run(self) -> None:
        world, most = self.world, MOST // SAMPLES
        batch, self.waiting = self.waiting[:most], self.waiting[most:]
        self.is_busy = bool(batch)
        if batch:
            began_s, size = world.now_s, SAMPLES * len(batch)
            pass_s = (FIXED_S + EACH_S * size) * world.rng.uniform(0.85, 1.15)
            world.at(pass_s + BESIDES_S, lambda: self.done(batch, began_s, pass_s, size))

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

    def __init__(self, *, replicas: int = 1, gateways: int = 1, max_queued: int = 1000) -> None:
        self.rng = random.Random(1)
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._serial = 0
        self.replicas = [Replica(self) for _ in range(replicas)]
        self.gates = [Gate("model 'm' version 1", max_queued=max_queued) for _ in range(gateways)]
        self.arrange()
        self.accounts: dict[str, Account] = {}
        self.ok: Counter[str] = Counter()
        self.by_gate: Counter[Gate] = Counter()
        self.refused: Counter[str] = Counter()
        self.expired: Counter[str] = Counter()
        self.took_s: list[float] = []

    def at(self, delay_s: float, what: Callable[[], object]) -> None:
        self._serial += 1
        heapq.heappush(self._events, (self.now_s + delay_s, self._serial, what))

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
        gate, account = self.rng.choice(self.gates), self.accounts[name]
        if (refusal := gate.refused(account, objective_s)) is not None:
            assert refusal.headers["retry-after-ms"]
            self.refused[name] += 1
            return
        ticket = Ticket(account, None, self.now_s, self.now_s + objective_s)
        ticket.cost = SAMPLES
        asked = Asked(gate, ticket, self.send)
        ticket.on_end = lambda refusal: self.expire(asked, refusal)
        self.at(objective_s, lambda: self.expire(asked))
        gate.enter(ticket, lambda _: self.send(asked))

    def send(self, asked: Asked) -> None:
        """To the less busy of two, as a pool's links."""
        two = self.rng.sample(self.replicas, min(2, len(self.replicas)))
        self.at(TRIP_S, lambda: min(two, key=lambda one: len(one.waiting)).take(asked))

    def answered(self, asked: Asked, took: Timings) -> None:
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
        per_s = times * CAPACITY * len(world.replicas) / len(WEIGHTS)
        world.key(name, per_s, objective_s, weight=weight)


def check(world: World, seconds: float, capacity: float, objective_s: float = 0.5) -> None:
    total = sum(world.ok.values())
    took_s = sorted(world.took_s)
    said = f"{world.ok} answered of {capacity * seconds:.0f}, {world.expired} too late"
    assert total >= 0.95 * capacity * seconds, said
    assert took_s[int(0.99 * len(took_s))] <= objective_s
    assert sum(world.expired.values()) <= 0.01 * total, said
    for name, weight in WEIGHTS.items():
        assert world.ok[name] / total == pytest.approx(weight / sum(WEIGHTS.values()), rel=0.05), said


@pytest.mark.parametrize(("replicas", "gateways"), [(1, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("objective_s", [0.15, 0.5])
def test_three_times_too_much(replicas: int, gateways: int, objective_s: float) -> None:
    world = World(replicas=replicas, gateways=gateways)
    overloaded(world, objective_s=objective_s)
    world.run(1.5)
    world.forget()
    world.run(4.0)
    check(world, 4.0, replicas * CAPACITY, objective_s)
    for gate in world.gates:
        assert 0.6 * MOST <= gate.window * gateways / (2 * replicas) <= 1.5 * MOST


def test_a_short_queue_is_enough() -> None:
    world = World(max_queued=60)
    overloaded(world)
    world.run(2.0)
    world.forget()
    world.run(4.0)
    check(world, 4.0, CAPACITY)
    assert sum(world.refused.values()) > CAPACITY * 4.0


def test_batch_has_what_interactive_leaves_and_shadow_what_both_leave() -> None:
    world = World()
    for name, part in (("interactive", 0.5), ("batch", 0.3), ("shadow", 3.0)):
        world.key(name, part * CAPACITY, 0.5, priority=name)
    world.run(8.0)
    assert not world.refused["interactive"] + world.expired["interactive"]
    assert not world.refused["batch"] + world.expired["batch"]
    assert world.ok["interactive"] / CAPACITY / 8.0 == pytest.approx(0.5, rel=0.1)
    assert world.ok["batch"] / CAPACITY / 8.0 == pytest.approx(0.3, rel=0.1)
    assert world.ok["shadow"] / CAPACITY / 8.0 == pytest.approx(0.2, rel=0.2)


def test_replicas_that_are_lost_and_come_again() -> None:
    world = World(replicas=3)
    overloaded(world)
    world.run(1.0)
    [gate] = world.gates
    before = gate.window
    for _ in range(2):
        world.lose(world.replicas[0])
    world.run(0.5)
    assert gate.window == pytest.approx(before / 3, abs=8)
    world.run(1.0)
    world.forget()
    world.run(4.0)
    check(world, 4.0, CAPACITY)
    world.add()
    world.add()
    assert gate.window == pytest.approx(before, abs=8)
    assert gate.cost_under_way >= gate.window, "what waited has the new room at once"
    world.run(1.0)
    world.forget()
    world.run(2.0)
    check(world, 2.0, 3 * CAPACITY)


def test_without_a_replica_nothing_waits_so_that_somebody_starts_one() -> None:
    gate = Gate("m", max_queued=10)
    gate.arrange([], 1, 0.0)
    key, sent = Account("k", "k", KeyTerms(), 1.0, 0.0), list[Ticket]()
    tickets = [Ticket(key, None, 0.0, 60.0) for _ in range(40)]
    for ticket in tickets:
        assert gate.refused(key, 60.0) is None
        assert gate.enter(ticket, sent.append)
    gate.arrange([8], 1, 15.0)
    late = Ticket(key, None, 15.0, 75.0)
    assert not gate.enter(late, sent.append), "the first replica has enough to do"
    for ticket in tickets[:32]:
        ticket.close(16.0)
    assert late not in sent
    tickets[32].close(16.0)
    assert late in sent


def test_a_window_shrinks_to_what_is_worked_on_and_grows_with_the_batches() -> None:
    window = Window()
    assert window.size == OPEN
    window.arrange([64, 64], 1)
    assert (window.size, window.own_replicas) == (128, 2.0)
    window.arrange([64, 64], 3)
    assert window.size == 43
    window.arrange([64], 1)
    for _ in range(200):  # one at a time, 10 ms each, and the last waits for all before it
        window.observe(0.010 * (window.size - 1), 0.010, 1)
    assert 2 <= window.size <= 4
    for _ in range(200):  # 16 may go together now: whatever waits goes next
        batch = min(16, -(-window.size // 2))
        window.observe(0.010 * max(1.0, window.size / 16 - 1), 0.010, batch)
    assert 32 <= window.size <= 48
    for _ in range(500):
        window.observe(0.0, 0.010, 32)
    assert window.size == 64, "never more than replicas take"
    window.observe(0.0, 0.010, 100)
    assert window.size == 200, "but for one that is larger, which is to find the next one there"


@pytest.mark.parametrize(("gateways", "busy"), [(2, 1), (3, 2), (4, 1), (4, 2), (8, 1)])
def test_gateways_have_what_others_do_not_send_and_each_as_much(gateways: int, busy: int) -> None:
    world = World(gateways=gateways)
    everyone = world.gates
    world.gates = everyone[:busy]
    overloaded(world)
    world.run(2.0)
    world.forget()
    world.run(2.0)
    check(world, 2.0, CAPACITY)
    for gate in world.gates:
        assert world.by_gate[gate] / sum(world.by_gate.values()) == pytest.approx(1 / busy, rel=0.2)
    world.gates = everyone
    world.run(2.0)
    world.forget()
    world.run(2.0)
    check(world, 2.0, CAPACITY)
    for gate in everyone:
        assert world.by_gate[gate] / sum(world.by_gate.values()) == pytest.approx(1 / gateways, rel=0.2)
    everyone[0].arrange([2 * MOST], 1, world.now_s)
    assert everyone[0].window <= 2 * MOST, "never more than the replica takes"


def test_what_two_gateways_send_is_what_one_would() -> None:
    one, two = World(replicas=2), World(replicas=2, gateways=2)
    assert sum(gate.window for gate in two.gates) == one.gates[0].window


def test_who_waited_for_a_start_says_nothing_of_the_pace() -> None:
    gate, key = Gate("m", max_queued=100), Account("k", "k", KeyTerms(), 1.0, 0.0)
    gate.arrange([16], 1, 0.0)
    gate.forecast.observe(0.010, 1)
    tickets = [Ticket(key, None, 0.0, 60.0) for _ in range(76)]
    for ticket in tickets:
        gate.enter(ticket, lambda _: None)
    impatient, sent = Ticket(key, None, 0.0, 0.1), list[Ticket]()
    gate.enter(impatient, sent.append)
    gate.arrange([], 1, 0.0)  # the only replica is lost: all of them wait for the next one
    assert sent == [impatient], "it is not for the gate to say that a start takes too long"
    gate.arrange([16], 1, 20.0)
    for ticket in tickets:
        ticket.answered(20.1)
    assert gate.forecast.stretch == MARGIN


def test_a_crowd_of_long_ago_keeps_nobody_out() -> None:
    gate, key = Gate("m", max_queued=100), Account("k", "k", KeyTerms(), 1.0, 0.0)
    gate.arrange([16], 1, 0.0)
    took = Timings(0, 0, 10_000, 0, 1)
    gate.observe(took, 0.0)
    for _ in range(100):
        gate.forecast.correct(0.4, 0.010)
    assert gate.forecast.stretch > 20.0
    refused = 0
    for number in range(200):  # two at a time, of whom the second is foretold 20 ms
        now_s = number * 0.010
        first = Ticket(key, None, now_s, now_s + 0.1)
        gate.enter(first, lambda _: None)
        refused += gate.refused(key, 0.1) is not None
        first.answered(now_s + 0.010, took)
    assert 0 < refused < 100
    assert gate.refused(key, 0.1) is None


def test_the_pace_is_that_of_what_had_waited() -> None:
    gate, key = Gate("m", max_queued=10), Account("k", "k", KeyTerms(), 1.0, 0.0)
    gate.arrange([2], 1, 0.0)
    gate.forecast.observe(0.010, 1)
    now_s, line = 0.0, list[Ticket]()
    for _ in range(300):  # each takes 30 ms, though its pass takes 10
        while len(line) < 5:
            line.append(Ticket(key, None, now_s, now_s + 60.0))
            gate.enter(line[-1], lambda _: None)
        now_s += 0.030
        line.pop(0).answered(now_s)
    assert gate.forecast.stretch == pytest.approx(3.0 * MARGIN, rel=0.1)
    assert gate.refused(key, 0.15) is not None
    assert gate.refused(key, 0.25) is None
