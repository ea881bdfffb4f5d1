"""The ledger's work on a cluster in memory: when it decides, what it waits for, what it does."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import pytest

from eagleray.capacity import Allotment, Ask, Event, Node, Request, Settings, Statement, Units
from eagleray.capacity.placement import Capacity, NodeCapacity
from eagleray.capacity.resources import Resources
from eagleray.cluster import arbiter as module
from eagleray.cluster import sight
from eagleray.cluster.arbiter import Arbiter
from eagleray.cluster.side import Held
from eagleray.cluster.sight import Seen
from eagleray.errors import CapacityError, InputError

CPU = {"CPU": 1.0}
WORKERS = Capacity([NodeCapacity("worker", {"CPU": 2.0}, {}, 4)])
QUICK = Settings(
    ask_after_s=0.02, cool_down_s=0.1, grow_every_s=0.05, after_withdrawal_s=0.05, evict_every_s=0.2
)


class Cluster:
    """A `Side` in memory: a test changes the nodes and what is in use; it notes what the ledger does."""

    def __init__(self, **cpus: float) -> None:
        self.nodes = {name: node(name, amount) for name, amount in cpus.items()}
        self.in_use: dict[str, Resources] = {}
        self.asked: dict[str, Resources] = {}
        self.do_others_wait = False
        self.types = WORKERS
        self.is_away = False
        self.asks: list[tuple[tuple[Ask, ...], frozenset[str]]] = []
        self.evicted: list[tuple[str, dict[str, int]]] = []
        self.can_evict = True
        self.settled: list[str] = []
        self.told: list[Held] = []
        self.is_ended = False

    def observe(self, capacity: Capacity, *, with_asks: bool) -> Seen:
        if self.is_away:
            raise TimeoutError("the GCS is away")
        in_use = {name: self.in_use.get(name, {}) for name in self.nodes}
        asked = self.asked if with_asks else {}
        return Seen(tuple(self.nodes.values()), in_use, asked, self.do_others_wait)

    def capacity(self) -> Capacity:
        return self.types

    def ask(self, asks: Sequence[Ask], free: Mapping[str, Resources]) -> bool:
        self.asks.append((tuple(asks), frozenset(free)))
        return bool(asks)

    def settle(self, free: Mapping[str, Resources]) -> None:
        self.settled += free

    def evict(self, claim: str, units: Units, keep: Units) -> Mapping[str, int]:
        self.evicted.append((claim, dict(units)))
        if not self.can_evict:
            return {}
        for name in units:
            self.in_use.pop(name, None)
        return units

    def tell(self, held: Sequence[Held], totals: Mapping[str, Resources]) -> None:
        self.told = list(held)

    def end(self) -> None:
        self.is_ended = True


class Log:
    """An event log in memory."""

    epoch, trouble = 1, ""

    def __init__(self) -> None:
        self.nodes: dict = {}
        self.fenced = ""
        self.events: list[Event] = []

    def append(self, events: Iterable[Event]) -> None:
        self.events += events

    def close(self) -> None:
        pass

    def kinds(self, claim: str) -> list[str]:
        return [event.kind for event in self.events if event.claim == claim]


def node(name: str, cpus: float) -> Node:
    return Node(name, {"CPU": cpus}, node_type="worker", is_on_demand=True, name=f"node {name}")


def run(name: str = "r", minimum: int = 1, wanted: int = 1, **more) -> Request:
    return Request.run(name, f"run {name}", CPU, minimum=minimum, wanted=wanted, **more)


def service(name: str = "s", floor: int = 1, wanted: int = 1, **more) -> Request:
    return Request.service(name, f"service {name}", CPU, floor=floor, wanted=wanted, **more)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUSY_S", 0.01)
    monkeypatch.setattr(module, "_QUIET_S", 0.02)
    monkeypatch.setattr(module, "_TELL_EVERY_S", 0.02)
    monkeypatch.setattr(module, "LISTENS_S", 0.3)


Body = Callable[[Arbiter], Awaitable[None]]


def during(cluster: Cluster, body: Body, log: Log | None = None, **more) -> Log:
    """Run `body` beside an arbiter of `cluster`."""
    log = log or Log()

    async def whole() -> None:
        made = Arbiter(cluster, log, **{"is_restarted": False, "policy": QUICK, **more})  # type: ignore[arg-type]
        made.start()
        async with asyncio.timeout(20):
            await body(made)
        await made.end()

    asyncio.run(whole())
    assert cluster.is_ended
    return log


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


async def granted(ledger: Arbiter, request: Request, size: int | None = None) -> Allotment:
    """State the request until it has `size` units (all that it wants); then state that they run."""
    answer = ledger.exchange(Statement(request))
    assert answer is not None
    while answer.size < (request.wanted if size is None else size):
        found = await ledger.wait(request.claim, answer.version, 10)
        assert found is not None, ledger.report()
        answer = found
        answer = ledger.exchange(Statement(request, answer.version, answer.units)) or answer
    answer = ledger.exchange(Statement(request, answer.version, answer.units, answer.units))
    assert answer is not None
    return answer


def claim_of(ledger: Arbiter, name: str) -> dict:
    return next(claim for claim in ledger.report()["claims"] if claim["id"] == name)


@pytest.mark.alone
def test_free_room_is_granted_at_once_on_a_cluster_where_nothing_runs(quick):
    took_s: list[float] = []

    async def body(ledger: Arbiter) -> None:
        await until(lambda: ledger.report()["is_deciding"])
        began_s = time.monotonic()
        assert ledger.exchange(Statement(run(wanted=2))) == Allotment(0), "as it was before it was stated"
        found = await ledger.wait("r", 0, 10)
        took_s.append(time.monotonic() - began_s)
        assert found == Allotment(1, {"a": 2})

    log = during(Cluster(a=2), body)
    assert log.kinds("r") == ["open", "grant"]
    assert took_s[0] < 0.25, "a goal of 0.05 s on a machine that is free"


@pytest.mark.parametrize(("is_restarted", "in_use"), [(True, {}), (False, {"a": CPU})])
def test_a_ledger_that_takes_over_hears_the_holders_first(quick, is_restarted, in_use):
    cluster = Cluster(a=2)
    cluster.in_use = in_use

    async def body(ledger: Arbiter) -> None:
        ledger.exchange(Statement(run("new", 1, 2)))
        assert not ledger.report()["is_deciding"]
        await asyncio.sleep(0.1)
        assert ledger.report()["trouble"] == "the ledger hears its holders before it decides"
        ledger.exchange(Statement(service("old"), 7, {"a": 1}, {"a": 1}))
        assert claim_of(ledger, "new")["held"] == {}
        found = await ledger.wait("new", 0, 10)
        assert found is not None
        assert (found.units, claim_of(ledger, "old")["held"]) == ({"a": 1}, {"a": 1})

    during(cluster, body, is_restarted=is_restarted)


def test_what_runs_without_a_claim_is_subtracted_and_what_ended_is_free(quick):
    cluster = Cluster(a=1)
    cluster.in_use = {"a": CPU}

    async def body(ledger: Arbiter) -> None:
        ledger.exchange(Statement(run()))
        await until(lambda: claim_of(ledger, "r")["wait"])
        assert claim_of(ledger, "r")["wait"]["cause"] == "unclaimed"
        assert ledger.report()["nodes"][0]["other"] == CPU
        cluster.in_use = {}
        assert (await granted(ledger, run())).units == {"a": 1}

    during(cluster, body)


def test_room_that_is_given_back_is_granted_before_ray_says_that_it_is_free(quick):
    cluster = Cluster(a=1)

    async def body(ledger: Arbiter) -> None:
        await granted(ledger, run("first"))
        cluster.in_use = {"a": CPU}
        await until(lambda: ledger.report()["nodes"][0]["other"] == {})
        ledger.exchange(Statement(run("second")))
        await until(lambda: claim_of(ledger, "second")["wait"])
        ledger.close("first")
        found = await ledger.wait("second", 0, 10)
        assert found is not None
        assert found.units == {"a": 1}
        assert not cluster.asks or cluster.asks[-1][0] == ()

    during(cluster, body)


def test_a_notice_reaches_its_holder_and_what_it_gives_back_who_needs_it(quick):
    cluster = Cluster(a=2)

    async def body(ledger: Arbiter) -> None:
        had = await granted(ledger, run(wanted=2))
        ledger.exchange(Statement(service()))
        noticed = await ledger.wait("r", had.version, 10)
        assert noticed is not None
        assert (noticed.units, noticed.reason) == ({"a": 1}, "needed by service s (serving floor)")
        assert 9 < (noticed.deadline_s or 0) <= 10
        assert claim_of(ledger, "s")["wait"]["cause"] == "yield"
        ledger.exchange(Statement(run(wanted=2), noticed.version, {"a": 1}, {"a": 1}))
        assert (await granted(ledger, service())).units == {"a": 1}

    log = during(cluster, body)
    assert log.kinds("r")[:4] == ["open", "grant", "notice", "return"]
    assert [kind for kind in log.kinds("s") if kind != "ask_nodes"] == ["open", "wait", "grant"]


@pytest.mark.parametrize("can_evict", [True, False])
def test_what_is_not_given_back_in_time_is_ended_by_force(quick, can_evict, caplog):
    cluster = Cluster(a=2)
    cluster.can_evict = can_evict

    async def body(ledger: Arbiter) -> None:
        request = run(wanted=2, yield_s=0.05)
        await granted(ledger, request)
        cluster.in_use = {"a": {"CPU": 2.0}}
        ledger.exchange(Statement(service()))
        await until(lambda: cluster.evicted)
        assert cluster.evicted[0] == ("r", {"a": 1})
        if can_evict:
            assert (await granted(ledger, service())).units == {"a": 1}
            assert claim_of(ledger, "r")["held"] == {"a": 1}
        else:
            await until(lambda: len(cluster.evicted) > 1)
            assert claim_of(ledger, "s")["held"] == {}
            assert "its holder has to end these by itself: {'a': 1}" in caplog.text

    log = during(cluster, body)
    assert "evict" in log.kinds("r")
    assert [event.reason for event in log.events if event.kind == "return"] == ["ended by force"] * can_evict


def test_a_cluster_is_looked_at_while_force_takes_its_time(quick, monkeypatch):
    cluster, has_looked = Cluster(a=2), threading.Event()

    def slow(self: Cluster, claim: str, units: Units, keep: Units) -> Mapping[str, int]:
        self.evicted.append((claim, dict(units)))
        return units if has_looked.wait(5) else {}

    monkeypatch.setattr(Cluster, "evict", slow)
    monkeypatch.setattr(Cluster, "ask", lambda *_: True)  # so that each look has the asks, and settles
    cluster.asked = {"a": {}}

    async def body(ledger: Arbiter) -> None:
        await granted(ledger, run(wanted=2, yield_s=0.05))
        cluster.in_use = {"a": {"CPU": 2.0}}
        ledger.exchange(Statement(service()))
        await until(lambda: cluster.evicted)
        number = len(cluster.settled)
        began_s = time.monotonic()
        await until(lambda: len(cluster.settled) > number + 2 or time.monotonic() - began_s > 4)
        assert len(cluster.settled) > number + 2
        has_looked.set()

    during(cluster, body)


def test_what_its_holder_gives_back_while_it_is_ended_by_force_goes_once(quick, monkeypatch, caplog):
    cluster, kept, has_given_back = Cluster(a=2), [], threading.Event()

    def slow(self: Cluster, claim: str, units: Units, keep: Units) -> Mapping[str, int]:
        kept.append(dict(keep))
        return units if has_given_back.wait(5) else {}

    monkeypatch.setattr(Cluster, "evict", slow)

    async def body(ledger: Arbiter) -> None:
        request = run(wanted=2, yield_s=0.05)
        had = await granted(ledger, request)
        cluster.in_use = {"a": {"CPU": 2.0}}
        ledger.exchange(Statement(service()))
        await until(lambda: kept)
        noticed = await ledger.wait("r", had.version, 10)
        assert noticed is not None
        ledger.exchange(Statement(request, noticed.version, {"a": 1}, {"a": 1}))
        has_given_back.set()
        await asyncio.sleep(0.1)
        assert (kept, claim_of(ledger, "r")["held"]) == ([{"a": 1}], {"a": 1})

    log = during(cluster, body)
    assert log.kinds("r").count("return") == 1
    assert "has to end these" not in caplog.text


def test_what_was_granted_and_never_taken_into_use_needs_no_force(quick):
    cluster = Cluster(a=1)
    cluster.can_evict = False

    async def body(ledger: Arbiter) -> None:
        request = run(yield_s=0.05)
        ledger.exchange(Statement(request))
        await ledger.wait("r", 0, 10)
        ledger.exchange(Statement(request, 1, {"a": 1}))
        assert (await granted(ledger, service())).units == {"a": 1}

    during(cluster, body)


def test_nodes_are_asked_for_until_they_have_come(quick):
    cluster = Cluster()

    async def body(ledger: Arbiter) -> None:
        request = run(minimum=2, wanted=3)
        ledger.exchange(Statement(request))
        await until(lambda: cluster.asks and cluster.asks[-1][0])
        asks, present = cluster.asks[-1]
        assert (asks, present) == ((Ask("r", CPU, {}, 3, 3),), frozenset())
        cluster.asked = {"x": {"CPU": 2.0}}
        cluster.in_use = {"x": {"CPU": 2.0}}
        cluster.nodes = {"x": node("x", 2)}
        answer = await granted(ledger, request, 2)
        assert answer.units == {"x": 2}
        assert "x" in cluster.settled
        await until(lambda: cluster.asks[-1] == ((Ask("r", CPU, {}, 1, 1),), frozenset("x")))
        cluster.asked, cluster.in_use = {}, {"x": {"CPU": 2.0}}
        ledger.exchange(Statement(replace(request, wanted=2), answer.version, {"x": 2}, {"x": 2}))
        await until(lambda: cluster.asks[-1][0] == ())
        number = len(cluster.asks)
        await asyncio.sleep(0.1)
        assert len(cluster.asks) == number, "nothing is asked again and again"

    log = during(cluster, body)
    assert "ask_nodes" in log.kinds("r")


def test_work_of_others_that_came_with_the_new_node_is_not_the_asks(quick):
    cluster = Cluster()

    async def body(ledger: Arbiter) -> None:
        ledger.exchange(Statement(run(minimum=2, wanted=2)))
        await until(lambda: cluster.asks and cluster.asks[-1][0])
        cluster.asked, cluster.in_use = {"x": CPU}, {"x": {"CPU": 2.0}}
        cluster.nodes = {"x": node("x", 2)}
        await until(lambda: ledger.report()["nodes"])
        assert ledger.report()["nodes"][0]["other"] == CPU
        await until(lambda: claim_of(ledger, "r")["wait"]["cause"] == "unclaimed")
        assert claim_of(ledger, "r")["held"] == {}

    during(cluster, body)


def test_a_node_that_others_wait_for_is_granted_when_ray_has_given_them_theirs(quick, monkeypatch):
    monkeypatch.setattr(module, "_BUSY_S", 0.1)
    cluster = Cluster(a=1)
    cluster.do_others_wait = True

    async def body(ledger: Arbiter) -> None:
        await granted(ledger, run("first"))
        ledger.exchange(Statement(run(minimum=2, wanted=2)))
        await until(lambda: cluster.asks and cluster.asks[-1][0])
        cluster.nodes["x"] = node("x", 3)
        await until(lambda: "x" in {found["id"] for found in ledger.report()["nodes"]})
        cluster.in_use["x"] = CPU  # Ray says it only now
        assert claim_of(ledger, "r")["held"] == {}
        assert (await granted(ledger, run(minimum=2, wanted=2))).units == {"x": 2}
        assert [found["other"] for found in ledger.report()["nodes"]] == [{}, CPU]

    during(cluster, body)


def test_nothing_is_decided_while_the_cluster_cannot_be_seen(quick, monkeypatch, caplog):
    monkeypatch.setattr(sight, "_BLIND_S", 0.1)
    monkeypatch.setattr(sight, "_SETTLES_S", 0.5)
    cluster = Cluster(a=1, b=1)

    async def body(ledger: Arbiter) -> None:
        had = await granted(ledger, run())
        cluster.is_away = True
        await until(lambda: not ledger.report()["is_deciding"])
        assert ledger.report()["trouble"] == (
            "the cluster cannot be observed (TimeoutError: the GCS is away); what is held goes on to hold"
        )
        assert ledger.exchange(Statement(service())) == Allotment(0)
        cluster.is_away, all_nodes, cluster.nodes = False, cluster.nodes, {}
        await until(lambda: "cannot be observed" not in ledger.report()["trouble"])
        await until(lambda: "not all of the cluster has been seen for" in ledger.report()["trouble"])
        assert claim_of(ledger, "r")["held"] == had.units, (
            "a GCS that learns its nodes anew takes nothing away"
        )
        cluster.nodes = all_nodes
        assert (await granted(ledger, service())).size == 1

    during(cluster, body)
    assert caplog.text.count("cannot be observed") == 1


def test_a_node_that_dies_takes_its_units_along(quick):
    cluster = Cluster(a=1, b=1)

    async def body(ledger: Arbiter) -> None:
        had = await granted(ledger, run(wanted=2))
        assert had.units == {"a": 1, "b": 1}
        del cluster.nodes["a"]
        found = await ledger.wait("r", had.version, 10)
        assert found is not None
        assert found.units == {"b": 1}

        for _ in range(3):  # a holder that has not noticed, and looks come in between
            ledger.exchange(Statement(run(wanted=2), had.version, had.units, had.units))
            await asyncio.sleep(0.03)
        assert ledger.exchange(Statement(run(wanted=2), found.version, had.units, had.units)) == found

    log = during(cluster, body)
    assert [event.reason for event in log.events if event.kind == "return"] == ["its node has gone"]
    assert "take" not in log.kinds("r")


def test_a_new_ledger_takes_nothing_up_on_a_node_that_has_gone(quick):
    async def body(ledger: Arbiter) -> None:
        for _ in range(10):
            ledger.exchange(Statement(run(wanted=2), 5, {"a": 1, "b": 1}, {"a": 1, "b": 1}))
            await asyncio.sleep(0.02)
        assert claim_of(ledger, "r")["held"] == {"b": 1}

    log = during(Cluster(b=1), body, is_restarted=True)
    assert (log.kinds("r").count("take"), log.kinds("r").count("return")) == (0, 1)


def test_a_holder_that_falls_silent_loses_its_claim_and_one_that_speaks_does_not(quick):
    cluster = Cluster(a=2)

    async def body(ledger: Arbiter) -> None:
        silent, speaks = run("silent"), run("speaks")
        await granted(ledger, silent)
        had = await granted(ledger, speaks)
        while any(claim["id"] == "silent" for claim in ledger.report()["claims"]):
            ledger.exchange(Statement(speaks, had.version, had.units, had.units))
            await asyncio.sleep(0.01)
        assert claim_of(ledger, "speaks")["held"] == {"a": 1}

    log = during(cluster, body, policy=replace(QUICK, lease_s=0.2))
    assert "expire" in log.kinds("silent")


def test_what_a_silent_holder_still_runs_is_seen_before_its_room_is_granted(quick):
    cluster = Cluster(a=1)

    async def body(ledger: Arbiter) -> None:
        await granted(ledger, run("silent"))
        cluster.in_use = {"a": CPU}
        began_s = time.monotonic()
        while time.monotonic() - began_s < 0.6:
            ledger.exchange(Statement(run("speaks")))
            await asyncio.sleep(0.01)
        assert [claim["id"] for claim in ledger.report()["claims"]] == ["speaks"]
        assert claim_of(ledger, "speaks")["wait"]["cause"] == "unclaimed"
        cluster.in_use = {}
        while not (answer := ledger.exchange(Statement(run("speaks")))) or not answer.size:
            await asyncio.sleep(0.01)
        assert answer.units == {"a": 1}

    log = during(cluster, body, policy=replace(QUICK, lease_s=0.2))
    kinds = [event.kind for event in log.events if event.claim == "speaks"]
    assert kinds.count("grant") == 1, "not the room in which the silent holder's worker ran"


def test_what_a_silent_holder_runs_is_not_taken_for_the_start_of_what_was_granted_beside_it(quick):
    """In use on the node are 2 CPU: those of the silent one, or 1 of it and 1 that was just granted."""
    cluster = Cluster(a=4)

    async def body(ledger: Arbiter) -> None:
        silent, beside = run("silent", wanted=2), Statement(run("beside"))
        await granted(ledger, silent)
        cluster.in_use = {"a": {"CPU": 2.0}}
        while [claim["id"] for claim in ledger.report()["claims"]] != ["beside"]:
            answer = ledger.exchange(beside)
            assert answer is not None
            beside = replace(beside, seen=answer.version, held=answer.units)
            await asyncio.sleep(0.01)
        more = replace(beside, request=run("beside", wanted=4))
        for _ in range(30):
            ledger.exchange(more)
            await asyncio.sleep(0.01)
        assert claim_of(ledger, "beside")["held"] == {"a": 2}, "2 of 4 CPU run without a claim"

    during(cluster, body, policy=replace(QUICK, lease_s=0.2, start_limit_s=60.0))


def test_a_look_at_a_gcs_that_learns_its_nodes_anew_shows_nothing_of_what_runs():
    seeing, lone = sight.Sight(), node("a", 1)
    seeing.take_in(Seen((lone,), {"a": CPU}, {}), [], 1.0, 1.1, unsaid_since_s=0.0)
    seeing.lose(TimeoutError("the GCS is away"), 2.0)
    seeing.take_in(Seen((), {}, {}), [], 3.0, 3.1, unsaid_since_s=0.0)
    assert seeing.began_s == 1.0
    seeing.take_in(Seen((lone,), {"a": CPU}, {}), [], 4.0, 4.1, unsaid_since_s=0.0)
    assert seeing.began_s == 4.0


def test_a_ledger_that_stood_still_listens_before_it_strikes_anybody_out(quick, monkeypatch):
    monkeypatch.setattr(module, "_STOOD_STILL_S", 0.3)
    now_s = [1000.0]

    async def body(ledger: Arbiter) -> None:
        had = await granted(ledger, run())
        now_s[0] += 60.0
        await until(lambda: not ledger.report()["is_deciding"])
        while not ledger.report()["is_deciding"]:
            ledger.exchange(Statement(run(), had.version, had.units, had.units))
            await asyncio.sleep(0.02)
            now_s[0] += 0.1
        assert claim_of(ledger, "r")["held"] == {"a": 1}

    during(Cluster(a=1), body, clock=lambda: now_s[0])


def test_a_ledger_that_could_not_see_listens_before_it_strikes_anybody_out(quick, monkeypatch):
    """What was away from it may have been away from holders, too."""
    monkeypatch.setattr(module, "_STOOD_STILL_S", 0.1)
    cluster = Cluster(a=1)

    async def body(ledger: Arbiter) -> None:
        had = await granted(ledger, run())
        cluster.is_away = True
        await asyncio.sleep(0.4)
        cluster.is_away = False
        await until(lambda: "hears its holders" in ledger.report()["trouble"])
        await asyncio.sleep(0.1)
        while not ledger.report()["is_deciding"]:
            ledger.exchange(Statement(run(), had.version, had.units, had.units))
            await asyncio.sleep(0.02)
        assert claim_of(ledger, "r")["held"] == {"a": 1}

    log = during(cluster, body, policy=replace(QUICK, lease_s=0.3))
    assert "expire" not in log.kinds("r")


def test_what_can_never_be_placed_is_refused_and_what_is_held_stays(quick):
    cluster = Cluster(a=2)
    cluster.types = Capacity([NodeCapacity("worker", {"CPU": 2.0}, {}, 1)])

    async def body(ledger: Arbiter) -> None:
        await until(lambda: ledger.report()["is_deciding"])
        with pytest.raises(
            CapacityError, match=r"^run r wants 3 units with 1 CPU each; node types allow at most 2"
        ):
            ledger.exchange(Statement(run(minimum=3, wanted=3)))
        assert ledger.report()["claims"] == []
        had = await granted(ledger, service(floor=1))
        with pytest.raises(CapacityError, match=r"^service s wants 3 floor replicas"):
            ledger.exchange(Statement(service(floor=3), had.version, had.units, had.units))
        assert (claim_of(ledger, "s")["held"], claim_of(ledger, "s")["minimum"]) == ({"a": 1}, 1)
        with pytest.raises(InputError, match="was opened with 1 CPU"):
            ledger.exchange(Statement(replace(service(), bundle={"CPU": 2.0})))

    during(cluster, body)


def test_what_came_before_the_first_look_and_can_never_be_placed_is_refused_after_it(quick):
    cluster = Cluster(a=2)
    cluster.types = Capacity([NodeCapacity("worker", {"CPU": 2.0}, {}, 1)])

    async def body(ledger: Arbiter) -> None:
        assert ledger.exchange(Statement(run(minimum=3, wanted=3))) == Allotment(0), "it knows no better yet"
        running = Statement(run("running", minimum=3, wanted=3), 4, {"a": 1}, {"a": 1})
        ledger.exchange(running)
        assert await ledger.wait("r", 0, 10) is None, "its holder states it again"
        with pytest.raises(CapacityError, match=r"^run r wants 3 units with 1 CPU each"):
            ledger.exchange(Statement(run(minimum=3, wanted=3)))
        assert [claim["id"] for claim in ledger.report()["claims"]] == ["running"]

    (dropped,) = [event for event in during(cluster, body).events if event.kind == "close"]
    assert dropped.claim == "r"
    assert dropped.reason.startswith("can never be placed: run r wants 3 units with 1 CPU each; node types")


def test_what_an_earlier_ledger_knew_waits_for_a_machine_that_is_away(quick):
    """It was suspended when a machine was started again, and the ledger with it."""
    cluster = Cluster(a=2)
    cluster.types = Capacity([NodeCapacity("a machine", {"CPU": 2.0}, {}, 1, is_fixed=True)])
    waits = Statement(run(minimum=3, wanted=3), 7, asked_s=60.0)

    async def body(ledger: Arbiter) -> None:
        ledger.exchange(waits)
        later = replace(waits, request=run("later", minimum=3, wanted=3))
        await until(lambda: ledger.report()["is_deciding"])
        ledger.exchange(later)
        assert [claim["id"] for claim in ledger.report()["claims"]] == ["r", "later"]
        with pytest.raises(CapacityError):
            ledger.exchange(Statement(run("new", minimum=3, wanted=3)))

    during(cluster, body)


def test_what_already_runs_is_taken_up_even_where_it_could_not_be_placed_anew(quick):
    cluster = Cluster(a=1)
    cluster.types = Capacity([])

    async def body(ledger: Arbiter) -> None:
        await until(lambda: ledger.report()["is_deciding"])
        answer = ledger.exchange(Statement(run(), 4, {"a": 1}, {"a": 1}))
        assert answer == Allotment(4, {"a": 1})

    during(cluster, body)


def test_a_ledger_that_was_replaced_answers_nobody_and_says_why(quick):
    log = Log()

    async def body(ledger: Arbiter) -> None:
        await granted(ledger, run())
        log.fenced = "a newer ledger of this cluster (epoch 2) writes there"
        assert ledger.exchange(Statement(run())) is None
        assert await ledger.wait("r", 1, 0.05) is None
        assert (ledger.report()["is_deciding"], ledger.report()["trouble"]) == (False, log.fenced)

    during(Cluster(a=1), body, log)


def test_the_report_is_plain_json_and_the_coordinator_is_told(quick):
    cluster = Cluster(a=2)

    async def body(ledger: Arbiter) -> None:
        await granted(ledger, run(wanted=2))
        ledger.exchange(Statement(service()))
        await until(lambda: claim_of(ledger, "r")["notice"] and claim_of(ledger, "s")["wait"])
        report = ledger.report()
        assert json.loads(json.dumps(report)) == report
        first, second = report["claims"]
        assert (first["id"], first["wait"]["waits_for"], first["first_class"]) == (
            "s",
            ["r"],
            "serving floor",
        )
        assert second["classes"] == {"training minimum": 1, "training share": 1}
        assert (second["notice"]["give"], second["notice"]["wanted_by"]) == ({"a": 1}, ["s"])
        assert report["nodes"][0]["name"] == "node a"
        await until(lambda: cluster.told == [Held("a", CPU, 2)])

    cluster.types = WORKERS
    during(cluster, body)


def test_an_end_that_failed_can_be_called_again(quick, monkeypatch):
    cluster, end, has_failed = Cluster(a=1), Cluster.end, []

    def fails_once(self: Cluster) -> None:
        if not has_failed:
            has_failed.append(True)
            raise TimeoutError("the GCS is away")
        end(self)

    monkeypatch.setattr(Cluster, "end", fails_once)

    async def body(ledger: Arbiter) -> None:
        with pytest.raises(TimeoutError, match="the GCS is away"):
            await ledger.end()
        assert not cluster.is_ended

    during(cluster, body)  # ends it again


def test_a_round_that_fails_is_not_the_last(quick, monkeypatch, caplog):
    decide, has_failed = module.decide, []

    def fails_once(*arguments):
        if not has_failed:
            has_failed.append(True)
            raise ZeroDivisionError("a fault in the policy")
        return decide(*arguments)

    monkeypatch.setattr(module, "decide", fails_once)

    async def body(ledger: Arbiter) -> None:
        assert (await granted(ledger, run())).size == 1

    during(Cluster(a=1), body)
    assert "a round failed" in caplog.text
