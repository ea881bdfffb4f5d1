"""Three times too much, on a clock of its own."""

from __future__ import annotations

import pytest

from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.admission.deadline import MARGIN
from eagleray.serving.admission.gate import Gate
from eagleray.serving.admission.limits import Account
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.admission.window import OPEN, Window
from eagleray.serving.link.frames import Timings
from support.overload import CAPACITY, MOST, WEIGHTS, Costs, World, overloaded


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


ROW = {"fixed_s": 0.003, "each_s": 0.0001875, "refused_s": 60e-6, "served_s": 120e-6}
"""About as in the row `overload` of `make bench-serving`: 10.3 M parameters on a core, and a gateway's."""


@pytest.mark.parametrize("besides_s", [0.0007, 0.0043])
def test_all_that_a_model_can_do_is_answered_with_what_requests_and_refusals_take(besides_s: float) -> None:
    alone = Costs(**ROW, besides_s=besides_s)
    shared = Costs(**ROW, besides_s=besides_s, lands=0.5)
    for costs in (alone, shared):
        world = World(costs=costs)
        overloaded(world)
        world.run(1.0)
        world.forget()
        world.run(2.0)
        # What refusals take of the model's core is all that is lost: no batch is short, none runs late.
        refused, answered = sum(world.refused.values()) / 2.0, sum(world.ok.values()) / 2.0
        taken = costs.lands * (refused * costs.refused_s + answered * costs.served_s)
        check(world, 2.0, (1.0 - taken) * costs.capacity / 0.95 * 0.98)
        assert sum(world.replicas[0].sizes) >= 0.99 * MOST * len(world.replicas[0].sizes)
        print(f"{answered:.0f} of {costs.capacity:.0f}/s, {taken:.1%} of its core for requests and refusals")


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
