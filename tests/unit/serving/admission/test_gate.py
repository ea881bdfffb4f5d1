"""The queue before a model version: its window, its bound, its order, and three times too much."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.admission.deadline import Forecast, TextForecast
from eagleray.serving.admission.gate import Gate
from eagleray.serving.admission.limits import Account
from eagleray.serving.admission.refusal import Refusal
from eagleray.serving.admission.ticket import Ticket


def account(name: str, **terms: Any) -> Account:
    return Account(name, name, KeyTerms(**terms), 1.0, 0.0)


def ticket(of: Account, now_s: float = 0.0, left_s: float = 10.0) -> Ticket:
    return Ticket(of, None, now_s, now_s + left_s)


def test_who_finds_room_is_sent_at_once_and_others_when_one_leaves() -> None:
    gate, key, sent = Gate("m", window=2, max_queued=10), account("a"), list[Ticket]()
    tickets = [ticket(key) for _ in range(5)]
    assert [gate.enter(one, sent.append) for one in tickets] == [True, True, False, False, False]
    assert (gate.num_queued, gate.cost_under_way) == (3, 2)
    tickets[3].close(1.0)  # the client has gone
    assert (gate.num_queued, gate.cost_under_way) == (2, 2)
    tickets[0].close(1.0)
    tickets[0].close(1.0)
    assert sent == [*tickets[:3]]
    tickets[1].close(1.0)
    tickets[2].close(1.0)
    tickets[4].close(1.0)
    assert sent == [tickets[0], tickets[1], tickets[2], tickets[4]]
    assert (gate.num_queued, gate.cost_under_way) == (0, 0)


def test_what_is_too_late_by_its_turn_is_told_and_not_sent() -> None:
    gate, key, sent, ended = (
        Gate("model 'm'", window=1, max_queued=10),
        account("a"),
        list[Ticket](),
        list[Refusal](),
    )
    first, late, last = ticket(key), ticket(key, left_s=0.5), ticket(key)
    for one in (first, late, last):
        one.on_end = ended.append
        gate.enter(one, sent.append)
    first.close(0.6)
    assert sent == [first, last]
    assert [(refusal.status, refusal.message) for refusal in ended] == [
        (504, "model 'm': the request waited 0.6 s, and has no time left")
    ]
    late.close(0.6)
    last.close(0.7)
    assert gate.cost_under_way == 0


def test_what_waited_for_a_first_replica_says_nothing_of_how_long_a_text_takes() -> None:
    gate, key, sent = Gate("m", max_queued=10, forecast=TextForecast()), account("a"), list[Ticket]()
    parked = [ticket(key, now_s=0.0, left_s=60.0) for _ in range(3)]
    assert all(gate.enter(one, sent.append) for one in parked)
    gate.arrange([1], 1, now_s=20.0)  # the first replica is there
    for one in parked:
        one.text_ended(21.0)
    assert gate.forecast.plain_s(1) == 0.0
    first, second = ticket(key, now_s=21.0), ticket(key, now_s=21.0)
    gate.enter(first, sent.append)
    gate.enter(second, sent.append)
    first.text_ended(22.0)
    second.text_ended(23.0)
    assert sent == [*parked, first, second]
    assert gate.forecast.plain_s(1) == pytest.approx(1.0), "each took one from its turn on"


def test_nor_what_was_let_go_to_wait_where_the_last_replica_went() -> None:
    gate, key, sent = Gate("m", max_queued=10), account("a"), list[Ticket]()
    gate.arrange([1], 1, now_s=0.0)
    gate.forecast.observe(0.1, 1)
    first, second = ticket(key, left_s=60.0), ticket(key, left_s=60.0)
    gate.enter(first, sent.append)
    gate.enter(second, sent.append)
    stretch = gate.forecast.stretch  # type: ignore[attr-defined]
    gate.arrange([], 1, now_s=0.05)
    assert sent == [first, second]
    gate.arrange([1], 1, now_s=9.0)
    for one in sent:
        one.answered(9.1)
    assert gate.forecast.stretch == stretch  # type: ignore[attr-defined]


def test_a_model_that_was_slow_once_is_tried_again_when_it_is_idle() -> None:
    gate, key = Gate("m", window=2, max_queued=10), account("a")
    gate.forecast.observe(30.0, 1)
    assert gate.refused(key, 1.0) is None
    gate.enter(ticket(key), lambda _: None)
    assert gate.refused(key, 1.0) is not None
    assert gate.refused(key, 90.0) is None


def test_five_thousand_that_fail_as_soon_as_they_are_sent() -> None:
    gate, key, failed = Gate("m", window=1, max_queued=10_000), account("a"), list[Ticket]()

    def fail(one: Ticket) -> None:
        failed.append(one)
        one.close(1.0)

    first = ticket(key)
    gate.enter(first, lambda _: None)
    waiting = [ticket(key) for _ in range(5000)]
    for one in waiting:
        gate.enter(one, fail)
    first.close(1.0)
    assert failed == waiting
    assert (gate.num_queued, gate.cost_under_way) == (0, 0)


def test_a_window_that_grows_lets_more_through() -> None:
    gate, key, sent = Gate("m", window=0, max_queued=10), account("a"), list[Ticket]()
    for _ in range(3):
        gate.enter(ticket(key), sent.append)
    assert sent == []
    gate.window = 2
    gate.pump(0.0)
    assert len(sent) == 2


def test_a_full_queue_keeps_out_who_has_his_share_of_it_and_no_other() -> None:
    gate, greedy = Gate("model 'm'", window=0, max_queued=10), account("greedy")
    admitted = 0
    while (refusal := gate.refused(greedy, 60.0)) is None:
        gate.enter(ticket(greedy), lambda _: None)
        admitted += 1
    assert admitted == 10
    assert (refusal.status, refusal.message) == (
        503,
        "model 'm' has 10 requests waiting, which is all it takes; try again",
    )
    assert refusal.headers["retry-after-ms"] == "500"
    others = [account(f"k{number}") for number in range(1000)]
    found = [other for other in others if gate.refused(other, 60.0) is None]
    assert len(found) == 1000
    for other in others:
        if gate.refused(other, 60.0) is None:
            gate.enter(ticket(other), lambda _: None)
    assert gate.num_queued == 20
    assert gate.refused(greedy, 60.0) is not None


def test_what_was_sent_while_there_was_no_replica_waits_again_among_all() -> None:
    gate, shadow, first = Gate("m", max_queued=10), account("s", priority="shadow"), account("i")
    gate.arrange([], 1, now_s=0.0)
    sent, parked = list[Ticket](), [ticket(of, left_s=60.0) for of in (shadow, shadow, first, shadow)]
    for one in parked:
        assert gate.enter(one, lambda _: None)
        one.on_turn = sent.append
    parked.pop().close(1.0)
    gate.arrange([3], 1, now_s=20.0)
    gate.again(parked, 20.0)
    assert (sent, gate.num_queued, gate.cost_under_way) == ([], 0, 3), "there is room for all"
    gate.arrange([2], 1, now_s=20.0)
    told = list[int]()
    gate.on_waiting = lambda: told.append(gate.num_queued)
    gate.again(parked, 20.0)
    assert told == [1], "for another replica"
    assert sent == [parked[2], parked[0]]
    assert (gate.num_queued, gate.cost_under_way, gate.num_entered) == (1, 2, 4)
    late = ticket(first, now_s=21.0, left_s=60.0)
    assert not gate.enter(late, sent.append)
    for one in (*sent, late, parked[1]):
        one.close(21.0)
    assert sent == [parked[2], parked[0], late, parked[1]]
    assert (gate.num_queued, gate.cost_under_way) == (0, 0)


def test_what_a_key_waits_for_leaves_it_no_share_of_a_full_queue() -> None:
    gate, first, shadow = Gate("m", window=0, max_queued=4), account("i"), account("s", priority="shadow")
    for _ in range(4):
        gate.enter(ticket(first), lambda _: None)
    assert gate.refused(shadow, 60.0) is not None, "else two keys that send without end keep out a third"
    assert gate.refused(account("j"), 60.0) is None


@dataclass
class Sim:
    """One replica that takes batches of up to 8 in 4 ms + 1 ms each, behind a gate; events on a clock."""

    objective_s: float
    gate: Gate = field(
        default_factory=lambda: Gate("m", window=16, max_queued=10_000, forecast=Forecast(max_batch=8))
    )
    now_s: float = 0.0
    arrived: list[Ticket] = field(default_factory=list[Ticket])
    is_busy: bool = False
    took_s: list[float] = field(default_factory=list[float])
    served: Counter[str] = field(default_factory=Counter[str])
    refused: Counter[str] = field(default_factory=Counter[str])
    num_late: int = 0

    def run(self, accounts: dict[str, Account], per_s: dict[str, float], seconds: float, seed: int) -> None:
        rng = random.Random(seed)
        events: list[tuple[float, int, Any]] = []
        for number, (name, rate) in enumerate(per_s.items()):
            heapq.heappush(events, (rng.expovariate(rate), number, name))
        serial = len(events)
        while events:
            self.now_s, _, what = heapq.heappop(events)
            if self.now_s > seconds:
                return
            serial += 1
            if isinstance(what, str):
                heapq.heappush(events, (self.now_s + rng.expovariate(per_s[what]), serial, what))
                self.arrive(accounts[what])
            else:
                self.finish(what)
            if not self.is_busy and self.arrived:
                self.is_busy = True
                batch, self.arrived = self.arrived[:8], self.arrived[8:]
                took_s = (0.004 + 0.001 * len(batch)) * rng.uniform(0.9, 1.1)
                self.gate.forecast.observe(took_s, len(batch))
                heapq.heappush(events, (self.now_s + took_s, serial + 10**9, batch))

    def arrive(self, of: Account) -> None:
        if self.gate.refused(of, self.objective_s) is not None:
            self.refused[of.name] += 1
            return
        one = ticket(of, self.now_s, self.objective_s)
        one.on_end = lambda _: self.late(one)
        self.gate.enter(one, self.sent)

    def sent(self, one: Ticket) -> None:
        self.arrived.append(one)

    def late(self, one: Ticket) -> None:
        self.num_late += 1
        one.close(self.now_s)

    def finish(self, batch: list[Ticket]) -> None:
        self.is_busy = False
        for one in batch:
            self.took_s.append(self.now_s - one.began_s)
            self.served[one.account.name] += 1
            one.close(self.now_s)


@pytest.mark.parametrize("priority", ["interactive", "batch"])
def test_of_three_times_too_much_as_much_is_answered_in_time_as_ever_and_each_key_has_its_weight(
    priority: Any,
) -> None:
    capacity = 8 / 0.012
    weights = {"a": 1, "b": 2, "c": 4}
    accounts = {name: account(name, weight=weight, priority=priority) for name, weight in weights.items()}
    sim = Sim(objective_s=0.2)
    sim.run(accounts, dict.fromkeys(weights, capacity), 12.0, seed=3)
    total = sum(sim.served.values())
    took_s = sorted(sim.took_s)
    in_time = sum(seconds <= 0.2 for seconds in took_s)
    assert in_time >= 0.95 * capacity * 12.0
    assert took_s[int(0.99 * len(took_s))] <= 0.2
    assert sim.num_late <= 0.01 * total
    for name, weight in weights.items():
        assert sim.served[name] / total == pytest.approx(weight / 7, rel=0.05), sim.served


def test_a_key_below_its_share_is_not_refused_while_another_sends_three_times_too_much() -> None:
    capacity = 8 / 0.012
    accounts = {name: account(name) for name in ("small", "greedy")}
    sim = Sim(objective_s=0.2)
    sim.run(accounts, {"small": 0.2 * capacity, "greedy": 3 * capacity}, 6.0, seed=5)
    assert sim.refused["small"] == 0
    assert sim.served["small"] == pytest.approx(0.2 * capacity * 6.0, rel=0.1)
    assert sim.refused["greedy"] > 0


def test_batch_has_what_interactive_leaves_and_every_key_of_it_gets_some() -> None:
    capacity = 8 / 0.012
    accounts = {"i": account("i")} | {
        name: account(name, priority="batch", weight=weight) for name, weight in (("x", 1), ("y", 9))
    }
    sim = Sim(objective_s=1.0)
    sim.run(accounts, {"i": 0.5 * capacity, "x": capacity, "y": capacity}, 12.0, seed=9)
    assert sim.refused["i"] == 0
    rest = sim.served["x"] + sim.served["y"]
    assert rest == pytest.approx(0.5 * capacity * 12.0, rel=0.1)
    assert sim.served["x"] / rest == pytest.approx(0.1, rel=0.15)
