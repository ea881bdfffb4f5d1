"""Random schedules: claims come, grow and die, nodes come and go, holders obey or do not."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.capacity import Node, Request
from eagleray.capacity.placement import Capacity, NodeCapacity
from unit.capacity.simulator import YIELD_S, World

CPU_NODE, GPU_NODE = {"CPU": 2}, {"CPU": 2, "GPU": 1}
TOTALS = [{"CPU": 1}, CPU_NODE, GPU_NODE, {"CPU": 4, "GPU": 2}]
BUNDLES = [{"CPU": 1}, {"CPU": 1, "GPU": 1}, {"CPU": 2}, {"CPU": 0.5, "GPU": 0.5}, {"GPU": 2}]
STARTABLE = Capacity(
    [NodeCapacity("cpu", CPU_NODE, {"pool": "cpu"}, 2), NodeCapacity("gpu", GPU_NODE, {"pool": "gpu"}, 2)], 3
)
DELAYS = [0, 0, 1, 2, YIELD_S + 3, math.inf]

small = st.integers(0, 3)
opens = st.tuples(
    st.just("open"),
    st.sampled_from(["service", "run", "search", "job"]),
    st.sampled_from(BUNDLES),
    small,
    small,
    st.sampled_from(DELAYS),
    st.sampled_from([{}, {}, {}, {"pool": "gpu"}]),
    st.sampled_from([None, None, 1]),
)
steps = st.one_of(
    opens,
    opens,
    st.tuples(st.just("want"), small, st.integers(0, 5)),
    st.tuples(st.sampled_from(["finish", "die", "die and leave"]), small),
    st.tuples(st.sampled_from(["lose", "drain"]), small),
    st.tuples(st.just("join"), st.sampled_from(TOTALS)),
    st.tuples(st.just("stranger"), small, st.sampled_from(BUNDLES)),
    st.tuples(st.just("stranger ends"), small),
    st.tuples(st.just("pause"), small, st.integers(1, 9)),
    st.just(("restart",)),
    st.tuples(st.just("time"), st.integers(1, 6)),
)
clusters = st.lists(st.sampled_from(TOTALS), min_size=1, max_size=4)
schedules = st.lists(steps, min_size=5, max_size=25)


def request(name: str, kind: str, bundle, minimum: int, more: int, selector, budget: int | None) -> Request:
    rest = {"label_selector": selector, "budget": budget, "yield_s": YIELD_S}
    match kind:
        case "service":
            return Request.service(name, name, bundle, floor=minimum, wanted=minimum + more, **rest)
        case "run":
            return Request.run(
                name, name, bundle, minimum=max(1, minimum), wanted=max(1, minimum) + more, **rest
            )
        case "search":
            return Request.search(name, name, bundle, wanted=minimum + more, **rest)
        case _:
            return Request.job(name, name, bundle, units=max(1, minimum), **rest)


def play(totals, schedule, capacity: Capacity | None) -> World:
    world = World([Node(f"m{i}", total, labels={"pool": "gpu"}) for i, total in enumerate(totals)], capacity)
    numbers = itertools.count()
    for step in schedule:
        name, *arguments = step
        is_of_holder = name in ("want", "finish", "die", "die and leave", "pause")
        picked = sorted(world.holders if is_of_holder else world.nodes)
        is_number = bool(arguments) and isinstance(arguments[0], int)
        chosen = picked[arguments[0] % len(picked)] if picked and is_number else None
        if name == "open":
            kind, bundle, minimum, more, delay_s, selector, budget = arguments
            made = request(f"{kind}{next(numbers)}", kind, bundle, minimum, more, selector, budget)
            # One that obeys in the end is sometimes out of the reach of force.
            is_late = YIELD_S < delay_s < math.inf
            world.open(made, delay_s, is_out_of_reach=is_late and kind == "service")
        elif name == "join":
            world.join(Node("j", arguments[0], labels={"pool": "cpu"}))
        elif name == "stranger ends" and world.strangers:
            world.strangers.pop(arguments[0] % len(world.strangers))
        elif name == "restart":
            world.restart_ledger()
        elif name == "time":
            for _ in range(arguments[0] - 1):
                world.tick()
        elif chosen is not None:
            match name:
                case "want":
                    world.want(chosen, arguments[1])
                case "finish":
                    world.finish(chosen)
                case "die" | "die and leave":
                    world.die(chosen, leaves_processes=name == "die and leave")
                case "pause":
                    world.pause(chosen, arguments[1])
                case "lose":
                    world.lose(chosen)
                case "drain":
                    world.drain(chosen)
                case "stranger":
                    world.run_without_claim(chosen, arguments[1])
        world.tick()
    return world


def sizes(world: World) -> dict[str, int]:
    """Units in use."""
    return {name: holder.used.total() for name, holder in world.holders.items()}


def test_a_day():
    """A run has all free nodes; traffic rises, and replicas come up on what it gave back; traffic falls."""
    world = World([Node(name, {"CPU": 1}) for name in "abcd"])
    world.open(Request.service("s", "service gpt", {"CPU": 1}, floor=1, wanted=1))
    world.tick()
    world.open(Request.run("r", "run gpt", {"CPU": 1}, minimum=1, wanted=4))
    seen = []
    for wanted, ticks in [(1, 3), (3, 4), (4, 4), (1, 10)]:
        world.want("s", wanted)
        for _ in range(ticks):
            world.tick()
        seen.append(sizes(world))
    assert seen == [{"s": 1, "r": 3}, {"s": 3, "r": 1}, {"s": 4, "r": 0}, {"s": 1, "r": 3}]


def test_a_new_ledger_takes_over_what_the_old_one_granted():
    world = World([Node(name, {"CPU": 2}) for name in "abc"])
    world.run_without_claim("c", {"CPU": 1})
    world.open(Request.run("r", "run gpt", {"CPU": 1}, minimum=1, wanted=4), delay_s=2)
    world.open(Request.service("s", "service gpt", {"CPU": 1}, floor=1, wanted=2))
    for _ in range(4):
        world.tick()
    before = sizes(world)
    world.want("s", 4)
    world.tick()
    world.restart_ledger()
    assert sizes(world) == before == {"r": 3, "s": 2}
    world.settle()
    assert sizes(world) == {"r": 1, "s": 4}, "one place is a stranger's"


def test_a_new_ledger_keeps_the_queue():
    world = World([Node("a", {"CPU": 1})])
    world.open(Request.job("now", "job now", {"CPU": 1}))
    world.tick()
    for name in ("z", "y", "x"):
        world.open(Request.job(name, f"job {name}", {"CPU": 1}))
        world.tick()
    world.restart_ledger()
    world.finish("now")
    for _ in range(3):
        world.tick()
    assert sizes(world) == {"z": 1, "y": 0, "x": 0}


@given(clusters, schedules, st.sampled_from([None, STARTABLE]))
@settings(max_examples=100)
def test_random_schedules(totals, schedule, capacity):
    play(totals, schedule, capacity).settle()


def random_step(rng: random.Random) -> tuple:
    """Like `steps`, but as likely late as early: Hypothesis prefers the short and simple."""
    chance, pick = rng.random(), rng.randint(0, 9)
    if chance < 0.30:
        kind = rng.choice(["service", "run", "run", "search", "job"])
        minimum, more, selector = (
            rng.randint(0, 3),
            rng.randint(0, 3),
            rng.choice([{}, {}, {}, {"pool": "gpu"}]),
        )
        delay_s, budget = rng.choice(DELAYS), rng.choice([None, None, 1])
        return ("open", kind, rng.choice(BUNDLES), minimum, more, delay_s, selector, budget)
    if chance < 0.42:
        return ("want", pick, rng.randint(0, 5))
    if chance < 0.44:
        return ("restart",)
    if chance < 0.48:
        return ("pause", pick, rng.randint(1, 9))
    if chance < 0.60:
        return (rng.choice(["finish", "die", "die and leave"]), pick)
    if chance < 0.66:
        return (rng.choice(["lose", "drain"]), pick)
    if chance < 0.74:
        return ("join", rng.choice(TOTALS))
    if chance < 0.80:
        return ("stranger", pick, rng.choice(BUNDLES))
    return ("stranger ends", pick) if chance < 0.86 else ("time", rng.randint(1, 6))


@pytest.mark.slow
def test_a_thousand_long_schedules():
    for seed in range(1000):
        rng = random.Random(seed)
        totals = [rng.choice(TOTALS) for _ in range(rng.randint(1, 5))]
        schedule = [random_step(rng) for _ in range(rng.randint(8, 50))]
        try:
            play(totals, schedule, rng.choice([None, STARTABLE])).settle()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
