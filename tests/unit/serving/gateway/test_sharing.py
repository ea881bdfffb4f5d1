"""A gateway's part of every key's limits: when it asks, what it goes by, and what a killed one leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.accounting import Accounts, held_of, held_to_json
from eagleray.serving.admission.door import Admission, Head
from eagleray.serving.admission.shares import FORGET_S, GROW_S, LEASE_S, Grant, Held, Lease
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.gateway import sharing
from eagleray.serving.gateway.sharing import Sharing
from eagleray.serving.keys import KeyRing

LIMITED, _KEY, TEXT = KeyRing().create("k", ["infer"], KeyTerms(requests_per_s=1000))
FREE = KeyRing().create("k", ["infer"])[0]


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class World:
    """One accountant for gateways by name."""

    clock: Callable[[], float] = time.monotonic
    number: int = 2
    asked: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    is_away: bool = False

    def __post_init__(self) -> None:
        self.accounts = Accounts(lambda: self.number, self.gone.__contains__, clock=self.clock)
        self.loop = asyncio.get_running_loop()

    def gateway(self, name: str, keys: KeyRing = LIMITED) -> tuple[Admission, Sharing]:
        admission = Admission(keys)

        def in_controller(work: Callable[[], Any]) -> Any:
            async def run() -> Any:
                return work()

            if self.is_away:
                raise ConnectionError("gone")
            return asyncio.run_coroutine_threadsafe(run(), self.loop).result(5)

        def ask(held: Mapping[str, Any], demands: Mapping[str, float]) -> Mapping[str, Any]:
            self.asked.append(name)
            return in_controller(lambda: self.accounts.renew(name, held, demands))

        return admission, Sharing(admission, ask)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def share(admission: Admission) -> float:
    return 1.0 if admission.lease is None else admission.lease.share(_KEY.id, time.monotonic())


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "PERIOD_S", 0.005)


def test_one_gateway_or_keys_without_limits_ask_nothing() -> None:
    async def scenario() -> None:
        world = World()
        (alone, first), (free, second) = world.gateway("alone"), world.gateway("free", FREE)
        first.follow(1)
        second.follow(2)
        await asyncio.sleep(0.03)
        assert (alone.lease, share(alone), world.asked) == (None, 1.0, [])
        assert second._thread is None
        free.take(LIMITED)
        second.follow(2)
        await until(lambda: world.asked)
        free.take(FREE)
        second.follow(2)
        await asyncio.sleep(0.02)
        number = len(world.asked)
        await asyncio.sleep(0.03)
        assert len(world.asked) == number
        await first.close()
        await second.close()

    asyncio.run(scenario())


def test_a_gateway_that_gets_a_second_beside_it_gives_half_away_and_has_it_back_when_that_goes() -> None:
    async def scenario() -> None:
        world = World()
        (old, first), (new, second) = world.gateway("old"), world.gateway("new")
        first.follow(1)
        first.follow(2)
        assert share(old) == 0.5
        second.follow(2)
        assert share(new) == 0.0, "until it is told, the other may go by all"
        await until(lambda: world.accounts._accountant)
        assert world.accounts._accountant is not None
        world.accounts._accountant._started_s -= LEASE_S  # in which it only hears what they go by
        await until(lambda: share(new) > 0.4)
        await second.close()
        world.accounts.leave("new")
        first.follow(1)
        await until(lambda: old.lease is None)
        await asyncio.sleep(0.02)
        number = len(world.asked)
        await asyncio.sleep(0.03)
        assert len(world.asked) == number, "alone again it asks no more"
        await first.close()

    asyncio.run(scenario())


def test_without_an_accountant_each_goes_by_its_part(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        world = World()
        world.is_away = True
        admission, one = world.gateway("one")
        one.follow(1)
        one.follow(4)
        await until(lambda: len(world.asked) > 5)
        assert share(admission) == 0.25
        ticket = admission.admit(Head(f"Bearer {TEXT}"))
        assert isinstance(ticket, Ticket)
        assert ticket.account.state(time.monotonic())["x-ratelimit-limit"] == "1000"
        await one.close()

    asyncio.run(scenario())
    assert caplog.text.count("does not answer: ConnectionError: gone") == 1


def test_what_a_killed_gateway_held_is_free_at_once_and_what_a_lost_one_held_is_not() -> None:
    async def scenario() -> None:
        clock = Clock()
        world = World(clock=clock)
        half = held_to_json(Held(Grant(0.5), Grant(0.5)))
        for name in ("a", "b"):
            world.accounts.renew(name, half, {})
        found: Mapping[str, Any] = {}
        for _ in range(int(3 * LEASE_S / 0.1)):
            clock.now_s += 0.1
            found = world.accounts.renew("a", half, {_KEY.id: 0.1})
            await asyncio.sleep(0)
        assert found["shares"][_KEY.id] == pytest.approx(0.5), "it may be cut off, and admit"
        await until(lambda: not world.accounts._lookout.is_looking)
        world.gone.add("b")
        clock.now_s += 2.0
        world.accounts.renew("a", half, {_KEY.id: 0.1})
        await until(lambda: not world.accounts._lookout.is_looking)
        found = world.accounts.renew("a", half, {_KEY.id: 0.1})
        assert found == {"default": 1.0, "shares": {_KEY.id: pytest.approx(1.0)}}

    asyncio.run(scenario())


def test_when_none_has_asked_for_long_the_accountant_begins_anew() -> None:
    async def scenario() -> None:
        clock = Clock()
        world = World(clock=clock)
        half = held_to_json(Held(Grant(0.5), Grant(0.5)))
        world.accounts.renew("a", half, {})
        clock.now_s += FORGET_S + 1
        found = world.accounts.renew("a", half, {})
        assert found["default"] == 0.5, "the other one has asked nothing yet, and goes by its half"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "held",
    [Held(), Held(Grant(0.5, {"a": 0.9}), Grant(0.5, {"a": 0.9})), Held(Grant(0.5, {"a": 0.2}), Grant(0.5))],
)
def test_what_is_held_keeps_its_form_on_the_way(held: Held) -> None:
    assert held_of(held_to_json(held)) == held


def test_a_lease_follows_the_number_of_gateways() -> None:
    lease = Lease(2, 0.0)
    assert not lease.is_whole(0.0)
    lease.expect(4)
    assert lease.share("a", GROW_S + 1) == 0.25
    lease.take(Grant(1.0, {"a": 1.0}), 10.0)
    assert lease.is_whole(10.5)
    assert not lease.is_whole(10.0 + 2 * LEASE_S)
    lease.take(Grant(1.0, {"a": 0.5}), 10.0)
    assert not lease.is_whole(10.5)
