"""How many replicas a service runs: what its requests need, by its own delays, and what the ledger grants."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from eagleray.capacity import Request
from eagleray.cluster import holding
from eagleray.cluster.holding import Holding
from eagleray.serving import service_claims
from eagleray.serving.scaling import Load, Memory, allowed, desired
from eagleray.serving.service_claims import ANYWHERE, Ask, Replicas, ServiceClaims, spare, words
from support.pretend_ledger import PretendLedger, until

IDLE_S = 30.0
APP = "m--digits--v3"
CLAIM = f"serve:{APP}:CPU=1"
CPU = {"CPU": 1.0}


def load(running: int, target: int, needed: float, has_requests: bool = True, **changes) -> Load:
    values = {"time_s": 100.0, "minimum": 0, "maximum": 4, **changes}
    return Load(running=running, target=target, needed=needed, has_requests=has_requests, **values)


@pytest.mark.parametrize(
    ("now", "wanted"),
    [
        (load(1, 1, 0.9), 1),
        (load(1, 1, 1.1), 2),
        (load(1, 1, 9.0), 4),
        (load(2, 2, 1.5), 2),
        (load(1, 1, 0.0, minimum=2), 2),
        (load(0, 0, 0.0, has_requests=False), 0),
        (load(0, 0, 0.0), 1),  # the first request
        (load(0, 3, 3.0), 3),  # all have died: as many as before
        (load(1, 1, 3.0), 3),  # granted one so far: it goes on wanting three
    ],
)
def test_more_is_wanted_at_once(now, wanted):
    assert desired(now, Memory(), IDLE_S)[0] == wanted


def test_fewer_are_wanted_after_the_idle_time_only():
    at_first, memory = desired(load(3, 3, 0.5), Memory(), IDLE_S)
    assert at_first == 3
    later = load(3, 3, 0.5, time_s=100.0 + IDLE_S - 0.1)
    assert desired(later, memory, IDLE_S)[0] == 3
    assert desired(replace(later, time_s=100.0 + IDLE_S), memory, IDLE_S)[0] == 1
    _, busy = desired(replace(later, needed=3.0), memory, IDLE_S)
    assert busy.less_since_s is None, "a moment of load begins the time anew"


def test_what_was_never_granted_is_given_up_after_a_moment():
    """Else what takes it from a run goes on long after the requests, or asks anew with each of them."""

    def later(seconds: float, running: int = 1):
        return desired(load(running, running, 0.5, time_s=100.0 + seconds), memory, IDLE_S)

    wanted, memory = desired(load(1, 1, 3.0), Memory(), IDLE_S)
    assert wanted == 3
    wanted, memory = later(0)
    assert (wanted, later(4.9)[0], later(5)[0]) == (3, 3, 1)
    assert later(5, running=2)[0] == 2, "what was granted meanwhile stays for longer"
    memory = later(5, running=2)[1]
    assert (later(IDLE_S - 0.1, running=2)[0], later(IDLE_S, running=2)[0]) == (2, 1)


@pytest.mark.parametrize(("target", "left"), [(3, 1), (1, 0)])
def test_none_is_wanted_only_after_one(target, left):
    idle = load(target, target, 0.0, has_requests=False)
    assert desired(idle, Memory(target, idle.time_s - IDLE_S), IDLE_S)[0] == left


@pytest.mark.parametrize(
    ("wanted", "granted", "target", "has_run", "runs"),
    [
        (3, None, 1, True, 3),
        (3, 2, 1, True, 2),
        (2, 3, 1, True, 2),
        (1, 0, 0, True, 0),
        (1, 0, 1, False, 1),  # whether the package is any good shows by this one
        (3, 0, 3, False, 1),
        (0, 0, 0, False, 0),
    ],
)
def test_what_runs_is_wanted_and_granted(wanted, granted, target, has_run, runs):
    assert allowed(wanted, granted, load(0, target, 0.0), Memory(has_run=has_run)) == runs


@pytest.mark.parametrize(
    ("held", "allotted", "has", "meant", "given"),
    [
        ({"a": 1, "b": 1}, {"a": 1, "b": 1}, Replicas({"a": 1}, unplaced=1), 2, {}),
        ({"a": 1, "b": 1}, {"a": 1, "b": 1}, Replicas({"a": 1}), 2, {}),  # Serve is about to start it
        ({"a": 1, "b": 1}, {"a": 1, "b": 1}, Replicas({"a": 1}), 1, {"b": 1}),
        ({"a": 1, "b": 1}, {"a": 1, "b": 1}, Replicas({"a": 1}, {"b": 1}), 1, {}),  # it finishes first
        ({"a": 1, "b": 1}, {"a": 1, "b": 1}, Replicas({"c": 1}), 1, {"a": 1, "b": 1}),
        ({"a": 1, "b": 1, "c": 1}, {"a": 1, "c": 1}, Replicas({"c": 1}), 2, {"b": 1}),  # the notice's first
        ({"a": 2}, {"a": 2}, Replicas({"b": 2}), 3, {"a": 1}),  # they came up elsewhere
        ({}, {}, Replicas({"a": 1}), 1, {}),
    ],
)
def test_what_is_not_needed_goes_back(held, allotted, has, meant, given):
    assert spare(held, allotted, has, meant) == Counter(given)


@pytest.mark.parametrize(
    ("app", "said"),
    [
        (APP, "service digits version 3"),
        ("m--my--v2--v10", "service my--v2 version 10"),
        ("others", "service others"),
    ],
)
def test_a_service_in_words(app, said):
    assert words(app) == said


class Serve:
    """Asks for replicas as Serve's controller does."""

    def __init__(self, ledger: PretendLedger | None, app: str = APP) -> None:
        self.claims, self.app = ServiceClaims(lambda: ledger, self.clock), app
        self.time_s, self.floor = 0.0, 0
        self.has, self.is_there, self.bundle = Replicas(), True, CPU

    def clock(self) -> float:
        return self.time_s

    def look(self) -> Replicas | None:
        return self.has if self.is_there else None

    def granted(self, wanted: int, meanwhile: int = 7) -> int | None:
        ask = Ask(self.app, self.bundle, {}, self.floor, wanted)
        return self.claims.granted(ask, self.has, meanwhile=meanwhile, look=self.look)

    def comes_to(self, wanted: int, granted: int | None) -> None:
        """Ask until the answer is `granted`."""

        def is_so() -> bool:
            found = self.granted(wanted)
            self.claims.round()
            return found == granted

        until(is_so, lambda: (self.granted(wanted), self.claims._services))


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> PretendLedger:
    """Two nodes. What a holder says again each second, as after a refusal, it says sooner."""
    monkeypatch.setitem(Holding.__init__.__kwdefaults__, "every_s", 0.05)
    return PretendLedger({"a": 1, "b": 1})


def test_a_burst_is_taken_from_a_run_and_lent_again(ledger):
    run = Holding(ledger, Request.run("r", "run r", CPU, minimum=1, wanted=2))
    assert run.wait(lambda found: found.size == 2, 10)
    run.state(used=run.allotment.units)
    serve = Serve(ledger)
    serve.comes_to(1, 0)
    less = run.wait(lambda found: found.size == 1, 10)
    assert less is not None
    assert less.deadline_s is not None
    run.state(used=less.units)
    run.state(held=less.units)
    serve.comes_to(1, 1)
    [node] = ledger.held(CLAIM)
    assert serve.claims.place(APP, Counter()) == node
    assert serve.claims.place(APP, Counter([node])) is None
    serve.time_s += service_claims._HELD_UP_S
    assert serve.claims.place(APP, Counter([node])) == ANYWHERE, "Ray may know of room"
    assert serve.claims.place(APP, Counter()) == node
    serve.has = Replicas({node: 1})
    serve.comes_to(1, 1)
    serve.has = Replicas()
    serve.comes_to(0, 0)
    until(lambda: ledger.held(CLAIM) == {})
    run.close()


def test_what_came_up_elsewhere_than_granted_is_held_there(ledger):
    serve = Serve(ledger)
    serve.comes_to(1, 1)
    [granted] = ledger.held(CLAIM)
    other = "b" if granted == "a" else "a"
    serve.has = Replicas({other: 1})
    serve.comes_to(1, 1)
    until(lambda: ledger.held(CLAIM) == {other: 1}, lambda: ledger.held(CLAIM))


def test_a_notice_names_the_replica_that_goes(ledger):
    first, floor = Serve(ledger), Serve(ledger, "m--other--v1")
    first.comes_to(2, 2)
    first.has = Replicas({"a": 1, "b": 1})
    first.comes_to(2, 2)
    floor.floor = 1
    floor.comes_to(1, 0)
    first.comes_to(2, 1)
    [kept] = first.claims._services[APP].holding.allotment.units
    running = {"old": "a", "new": "b"}
    assert first.claims.leaving(APP, running) == ["old" if kept == "b" else "new"]
    first.has = Replicas({kept: 1})
    first.comes_to(2, 1)
    floor.comes_to(1, 1)
    assert first.claims.leaving(APP, {"old": kept}) == []
    assert first.granted(2) == 1


def test_more_replicas_than_wanted_are_asked_for_while_one_version_replaces_another(ledger):
    serve = Serve(ledger)
    serve.has = Replicas({"a": 1}, unplaced=1)
    serve.comes_to(1, 2)
    assert serve.claims.place(APP, Counter(["a"])) == "b"


def test_without_a_ledger_nobody_grants_or_refuses():
    serve = Serve(None)
    assert serve.granted(3, meanwhile=2) == 2, "nobody has looked yet"
    serve.comes_to(3, None)
    assert serve.claims.place(APP, Counter()) == ANYWHERE
    assert serve.claims.leaving(APP, {"r": "a"}) == []


def test_a_replica_that_is_to_start_before_serve_has_asked_waits_for_that():
    serve = Serve(None)
    assert serve.claims.place(APP, Counter()) is None
    assert serve.claims.place("others", Counter()) == ANYWHERE
    serve.time_s += service_claims._UNKNOWN_S
    assert serve.claims.place(APP, Counter()) == ANYWHERE


def test_a_ledger_that_comes_later_is_found(ledger):
    there = []
    serve = Serve(None)
    serve.claims = ServiceClaims(lambda: ledger if there else None, serve.clock)
    serve.comes_to(2, None)
    there.append(ledger)
    serve.time_s += service_claims._FIND_EVERY_S
    serve.comes_to(2, 2)


def test_a_ledger_that_does_not_answer_holds_nothing_up_for_long(ledger, monkeypatch):
    monkeypatch.setattr(holding, "_ANSWERED_S", 0.05)
    ledger.is_away = True
    serve = Serve(ledger)
    serve.comes_to(2, 7)
    serve.time_s += service_claims._PATIENCE_S + 0.1
    serve.comes_to(2, None)
    ledger.is_away = False
    serve.comes_to(2, 2)
    ledger.is_away = True
    serve.comes_to(2, None)


def test_what_the_ledger_refuses_is_scaled_without_it(ledger):
    other = Holding(ledger, Request.service(CLAIM, "another", {"CPU": 0.5}, floor=0, wanted=1))
    assert other.wait(lambda found: found.size == 1, 10)
    serve = Serve(ledger)
    serve.comes_to(2, None)
    other.close()
    serve.comes_to(2, 2)


def test_a_replica_of_another_size_takes_another_claim_while_the_others_keep_their_room(ledger):
    serve = Serve(ledger)
    serve.floor = 1
    serve.comes_to(2, 2)
    serve.has = Replicas({"a": 1, "b": 1})
    serve.comes_to(2, 2)
    until(lambda: ledger.book.claims[CLAIM].used == {"a": 1, "b": 1})
    ledger.nodes = {"a": 1.5, "b": 1}
    serve.bundle = {"CPU": 0.5}
    serve.has = Replicas(unplaced=1, former={"a": 1, "b": 1})
    assert serve.granted(2) == 7, "the new claim has not been heard of yet"
    assert serve.claims.place(APP, Counter(["a", "b"])) is None, "no unit of another size is one of these"
    other = f"serve:{APP}:CPU=0.5"
    serve.comes_to(2, 3)
    assert (ledger.held(CLAIM), ledger.held(other)) == ({"a": 1, "b": 1}, {"a": 1})
    assert serve.claims.place(APP, Counter(["a", "b"])) == "a"
    assert serve.claims.place(APP, Counter(["a", "a", "b"])) is None
    serve.has = Replicas({"a": 1}, unplaced=1, former={"b": 1}, former_stopping={"a": 1})
    serve.comes_to(2, 2)
    assert ledger.held(CLAIM) == {"a": 1, "b": 1}, "it finishes what it has begun"
    serve.has = replace(serve.has, former_stopping={})
    serve.comes_to(2, 3)
    assert (ledger.held(CLAIM), ledger.book.claims[CLAIM].request.minimum) == ({"b": 1}, 1)
    serve.has = Replicas({"a": 2})
    serve.comes_to(2, 2)
    assert (CLAIM in ledger.book.claims, ledger.held(other)) == (False, {"a": 2})


def test_a_size_that_is_taken_back_takes_its_claim_back(ledger):
    serve = Serve(ledger)
    serve.comes_to(1, 1)
    [node] = ledger.held(CLAIM)
    serve.has = Replicas({node: 1})
    serve.comes_to(1, 1)
    until(lambda: ledger.book.claims[CLAIM].used == {node: 1})
    serve.bundle, serve.has = {"CPU": 0.5}, Replicas(former={node: 1})
    serve.comes_to(1, 2)
    serve.bundle, serve.has = CPU, Replicas({node: 1})
    serve.comes_to(1, 1)
    until(lambda: serve.claims.round() or set(ledger.book.claims) == {CLAIM})
    assert ledger.held(CLAIM) == {node: 1}


def test_a_deleted_service_gives_all_back_when_its_last_replica_has_gone(ledger):
    serve = Serve(ledger)
    serve.floor = 1
    serve.comes_to(2, 2)
    serve.has = Replicas(stopping={"a": 1})
    serve.time_s += service_claims._SILENCE_S + 0.1
    serve.claims.round()
    until(lambda: ledger.book.claims[CLAIM].used == {"a": 1})
    assert ledger.book.claims[CLAIM].request.wanted == 0
    until(lambda: serve.claims.round() or ledger.held(CLAIM) == {"a": 1})
    serve.is_there = False
    serve.claims.round()
    assert CLAIM not in ledger.book.claims


def test_after_a_restart_of_serves_controller_the_claim_begins_with_what_runs(ledger):
    stated = []
    exchange = ledger.exchange
    ledger.exchange = lambda statement: stated.append(statement) or exchange(statement)
    serve = Serve(ledger)
    serve.has = Replicas(unplaced=1, is_recovering=True)
    serve.granted(1)
    serve.claims.round()
    assert stated == []
    serve.has = Replicas({"b": 1})
    serve.comes_to(1, 1)
    assert stated[0].used == {"b": 1}
    until(lambda: ledger.held(CLAIM) == {"b": 1})
