"""Limits over several gateways, on simulated clocks: the sum of what is admitted, and who gets it."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.admission.door import Admission, Head
from eagleray.serving.admission.refusal import Refusal
from eagleray.serving.admission.shares import FORGET_S, LEASE_S, PERIOD_S, Accountant, Grant, Held, Lease
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.keys import KeyRing


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class World:
    """Some gateways with one key, and an accountant that may be away."""

    num_gateways: int
    terms: KeyTerms
    clock: Clock = field(default_factory=Clock)
    admitted: list[float] = field(default_factory=list[float])
    delay_s: float = 0.0
    """The longest that an answer of the accountant takes."""

    def __post_init__(self) -> None:
        self.keys, key, text = KeyRing().create("k", ["infer"], self.terms)
        self.key_id, self.head = key.id, Head(f"Bearer {text}", num_bytes=20)
        self.accountant: Accountant | None = Accountant(self.num_gateways, clock=self.clock)
        self.leases = [Lease(self.num_gateways, self.clock()) for _ in range(self.num_gateways)]
        self.gateways = [Admission(self.keys, lease=lease, clock=self.clock) for lease in self.leases]
        self.down: set[int] = set()
        self.dead: set[int] = set()
        self.answers: dict[int, tuple[Grant, float, float]] = {}
        self.rng = random.Random(1)
        self.next_s = [
            self.clock() + PERIOD_S * number / self.num_gateways for number in range(self.num_gateways)
        ]

    def shares(self) -> list[float]:
        return [lease.share(self.key_id, self.clock()) for lease in self.leases]

    def ask(self, number: int) -> None:
        """What a gateway does ten times a second; an answer comes at the first time after `delay_s`."""
        gateway, lease, now_s = self.gateways[number], self.leases[number], self.clock()
        if number in self.answers:
            grant, asked_s, due_s = self.answers[number]
            if now_s >= due_s:
                lease.take(grant, asked_s)
                del self.answers[number]
        if self.accountant is not None and number not in self.down and number not in self.answers:
            grant = self.accountant.renew(str(number), lease.held(now_s), gateway.demands())
            if self.delay_s:
                self.answers[number] = grant, now_s, now_s + self.rng.uniform(0, self.delay_s)
            else:
                lease.take(grant, now_s)
        gateway.apply_shares()

    def run(self, seconds: float, arrivals: Callable[[float], Sequence[int]], step_s: float = 0.02) -> int:
        """How many requests were admitted; `arrivals` says at which gateways some come at a moment."""
        before, end_s = len(self.admitted), self.clock() + seconds
        while self.clock.now_s < end_s - 1e-9:
            self.clock.now_s += step_s
            for number in range(self.num_gateways):
                if self.clock() >= self.next_s[number] - 1e-9:
                    self.next_s[number] += PERIOD_S
                    self.ask(number)
            in_use = [share for number, share in enumerate(self.shares()) if number not in self.dead]
            assert sum(in_use) <= 1.0 + 1e-9, in_use
            for number in arrivals(self.clock()):
                ticket = self.gateways[number].admit(self.head)
                if isinstance(ticket, Ticket):
                    ticket.reserve_tokens(20, self.clock())
                    ticket.close(self.clock())
                    self.admitted.append(self.clock())
        return len(self.admitted) - before

    def most_in(self, seconds: float) -> int:
        """The most that any stretch of time of that length has seen, its end left out."""
        times = self.admitted
        return max(
            (bisect_left(times, times[first] + seconds - 1e-9) - first for first in range(len(times))),
            default=0,
        )


def evenly(per_s: float, gateways: Sequence[int], step_s: float = 0.02) -> Callable[[float], list[int]]:
    """So many a second, by turns."""
    state = {"due": 0.0, "next": 0}

    def arrivals(now_s: float) -> list[int]:
        state["due"] += per_s * step_s
        found = []
        while state["due"] >= 1.0:
            state["due"] -= 1.0
            state["next"] += 1
            found.append(gateways[int(state["next"]) % len(gateways)])
        return found

    return arrivals


@pytest.mark.parametrize("num_gateways", [1, 2, 3])
def test_the_whole_limit_is_to_be_had_through_one_gateway_and_no_more_through_all(num_gateways: int) -> None:
    world = World(num_gateways, KeyTerms(requests_per_s=50))
    world.run(3.0, lambda _: ())
    assert world.shares() == pytest.approx([1 / num_gateways] * num_gateways)
    world.run(1.0, evenly(150, [0]))
    assert world.run(10.0, evenly(150, [0])) >= 480
    last = num_gateways - 1
    world.run(2.0, evenly(150, [last]))
    assert world.run(10.0, evenly(150, [last])) >= 480
    assert world.run(10.0, evenly(300, range(num_gateways))) >= 480
    assert world.most_in(10.0) <= 525


def test_who_stays_below_the_limit_is_not_refused_whichever_way_he_comes() -> None:
    world = World(2, KeyTerms(requests_per_s=50))
    world.run(3.0, lambda _: ())
    assert world.run(20.0, evenly(40, [0, 1])) == pytest.approx(800, rel=0.01)
    assert world.run(20.0, evenly(40, [0, 0, 0, 1])) == pytest.approx(800, rel=0.03)


@settings(max_examples=12, deadline=None, phases=(Phase.reuse, Phase.generate))
@given(
    num_gateways=st.sampled_from([2, 3]),
    rate=st.integers(12, 200),
    seed=st.integers(0, 2**32),
)
def test_any_ten_seconds_see_at_most_a_twentieth_more_whatever_comes(
    num_gateways: int, rate: int, seed: int
) -> None:
    """Random loads at each gateway, bursts, pauses, late answers; gateways and the accountant come and go."""
    rng = random.Random(seed)
    world = World(num_gateways, KeyTerms(requests_per_s=rate))
    world.run(2.0, lambda _: (), step_s=0.05)
    for _ in range(8):
        loads = [rng.choice([0.0, 0.3, 1.0, 3.0]) * rate for _ in range(num_gateways)]
        match rng.randrange(4):
            case 0:
                world.accountant = None
            case 1:
                world.accountant = world.accountant or Accountant(world.num_gateways, clock=world.clock)
            case 2:
                world.accountant = Accountant(num_gateways, clock=world.clock)
            case _:
                pass
        world.delay_s = rng.choice([0.0, 0.0, 0.3, 1.5])
        world.down = {rng.randrange(num_gateways)} if rng.random() < 0.3 else set()

        def arrivals(_: float, loads: list[float] = loads) -> list[int]:
            return [
                number
                for number, load in enumerate(loads)
                for _ in range(int(load * 0.02) + (rng.random() < load * 0.02 % 1))
            ]

        world.run(rng.choice([0.5, 2.0, 6.0]), arrivals, step_s=0.02)
    assert world.most_in(10.0) <= rate * 10 * 1.05


def test_without_an_accountant_each_gateway_has_its_part() -> None:
    world = World(2, KeyTerms(requests_per_s=50))
    world.run(3.0, evenly(150, [0]))
    assert world.shares()[0] > 0.95
    world.accountant = None
    assert world.run(LEASE_S - 0.1, evenly(150, [0])) >= 40, "what was lent is obeyed to its end"
    world.run(3.0, evenly(150, [0, 1]))
    assert world.shares() == [0.5, 0.5]
    assert world.run(10.0, evenly(150, [0])) == pytest.approx(250, rel=0.04)
    world.accountant = Accountant(world.num_gateways, clock=world.clock)
    world.run(LEASE_S, evenly(150, [0]))
    assert max(world.shares()) <= 0.5 + 1e-9, "a new one lets nothing grow until it has heard from all"
    world.run(1.0, evenly(150, [0]))
    assert world.shares()[0] > 0.95
    assert world.most_in(10.0) <= 525


def test_a_gateway_that_went_or_died_leaves_its_part_to_the_others() -> None:
    world = World(2, KeyTerms(requests_per_s=50))
    world.run(3.0, evenly(150, [0, 1]))
    world.down = world.dead = {1}  # killed: its half is kept for a while
    world.run(5.0, evenly(150, [0]))
    assert world.shares()[0] == pytest.approx(0.5, abs=0.01)
    world.run(FORGET_S, evenly(100, [0]), step_s=0.05)
    assert world.shares()[0] > 0.98
    assert world.accountant is not None
    world.down = world.dead = set()
    world.leases[1].take(Grant(), world.clock())
    world.run(2.0, evenly(150, [0, 1]))
    assert world.shares()[1] > 0.4
    world.accountant.leave("1")  # drained: at once
    world.down = world.dead = {1}
    world.run(0.5, evenly(150, [0]))
    assert world.shares()[0] > 0.95


def test_a_gateway_that_nobody_told_anything_takes_no_part_until_all_others_go_by_theirs() -> None:
    lease = Lease(4, 100.0)
    quarter = Grant(0.25)
    assert (lease.share("k", 101.0), lease.held(101.0)) == (0.0, Held())
    assert (lease.share("k", 101.9), lease.held(101.9)) == (0.0, Held(Grant(), quarter))
    assert (lease.share("k", 103.1), lease.held(103.1)) == (0.25, Held(quarter, quarter))
    lease.take(Grant(0.25, {"k": 0.9, "l": 0.01}), 200.0)
    assert [lease.share("k", now_s) for now_s in (201.0, 201.1, 203.1)] == [0.9, 0.25, 0.25]
    assert [lease.share("l", now_s) for now_s in (201.0, 202.9, 203.1)] == [0.01, 0.01, 0.25]


def test_where_nothing_was_lent_yet_it_is_worth_to_come_again_soon() -> None:
    world = World(2, KeyTerms(requests_per_s=10, tokens_per_s=100))
    assert world.shares() == [0.0, 0.0]
    found = [world.gateways[0].admit(world.head) for _ in range(2)]
    assert isinstance(found[0], Ticket), "no bucket is smaller than a request"
    assert isinstance(found[1], Refusal)
    assert found[1].headers["retry-after-ms"] == "200"
    assert found[0].reserve_tokens(100, world.clock()) is None
    refused = found[0].reserve_tokens(100, world.clock())
    assert refused is not None
    assert refused.headers["retry-after"] == "2"


def test_a_third_gateway_gets_its_part_only_from_what_the_others_gave() -> None:
    clock = Clock()
    accountant = Accountant(2, clock=clock)
    clock.now_s += LEASE_S
    held: dict[str, Grant] = {}

    def renew(name: str) -> None:
        clock.now_s += 0.03
        goes_by = held.get(name, Grant())
        held[name] = accountant.renew(name, Held(goes_by, goes_by), {"k": 1.0})
        assert sum(grant.default for grant in held.values()) <= 1 + 1e-9
        assert sum(grant.of("k") for grant in held.values()) <= 1 + 1e-9

    for name in "ababab":
        renew(name)
    renew("c")
    assert held["c"].default == pytest.approx(0.0)
    for name in "abcabcabcabcabcabc":
        renew(name)
    assert [grant.default for grant in held.values()] == pytest.approx([1 / 3] * 3)
    assert held["c"].shares["k"] == pytest.approx(1 / 3, abs=0.05)


def test_the_accountant_forgets_keys_that_rest() -> None:
    world = World(2, KeyTerms(requests_per_s=50))
    world.run(3.0, evenly(150, [0]))
    assert world.accountant is not None
    assert list(world.accountant._keys) == [world.key_id]
    world.run(11.0, lambda _: (), step_s=0.05)
    assert world.accountant._keys == {}
    assert world.shares() == pytest.approx([0.5, 0.5])


def test_a_thousand_keys_of_two_gateways() -> None:
    clock = Clock()
    accountant = Accountant(clock=clock)
    demands = {f"k{number}": 0.05 for number in range(1000)}
    grant, other = Grant(), Grant()
    for _ in range(6):
        clock.now_s += 0.5
        grant = accountant.renew("a", Held(grant, grant), demands)
        other = accountant.renew("b", Held(other, other), {})
    assert min(grant.shares.values()) > 0.9
    assert len(grant.shares) == 1000


@pytest.mark.parametrize("limit", ["tokens_per_s", "bytes_per_s", "concurrency"])
def test_other_limits_are_shared_too(limit: str) -> None:
    world = World(2, KeyTerms(**{limit: 1000}))
    world.run(3.0, evenly(100, [0]))
    assert world.shares()[0] > 0.9
