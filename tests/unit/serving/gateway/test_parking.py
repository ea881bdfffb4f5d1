"""Requests that wait for a first replica: how many, how large, how long, and what who has to go is told."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import numpy as np
import pytest

from eagleray.errors import ServiceError
from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.admission.limits import Account
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.gateway.demand import Demand
from eagleray.serving.gateway.parking import Parking, num_bytes
from eagleray.serving.services import Trouble
from eagleray.serving.transport import Overloaded
from eagleray.serving.waiting import FIRST_START_S
from support.links import run
from support.serving import target

DIGITS, GPT = target("digits", 2, max_queued=3), target("gpt", 1)
APP = DIGITS.app


def account(name: str, **terms) -> Account:
    return Account(name, name, KeyTerms(**terms), 1.0, 0.0)


def ticket(by: Account | None) -> Ticket | None:
    return by and Ticket(by, None, 0.0, 60.0)


class Lot:
    """A parking with a clock that a test moves."""

    def __init__(self, **options) -> None:
        self.time_s = 100.0
        self.demand = Demand()
        self.parking = Parking(self.demand, clock=lambda: self.time_s, **options)

    async def park(self, number: int = 1, of=DIGITS, size: int = 10, left_s: float | None = None, by=None):
        """So many more wait; `by`: the account of their key."""
        found = [
            asyncio.ensure_future(self.parking.wait(of, size, left_s, ticket=ticket(by)))
            for _ in range(number)
        ]
        await asyncio.sleep(0)
        return found

    def queued(self, app: str = APP) -> int:
        """As the autoscaler is told."""
        return self.demand._of(app).waiting[0]


async def refused(lot: Lot, match: str, by=None, **options) -> Overloaded:
    with pytest.raises(Overloaded, match=match) as found:
        await lot.parking.wait(
            options.pop("of", DIGITS), options.pop("size", 10), options.pop("left_s", None), ticket=ticket(by)
        )
    return found.value


def test_they_wait_for_a_way_and_go_on_in_the_order_in_which_they_came():
    async def scenario():
        lot, order = Lot(), []

        async def one(number: int) -> None:
            await lot.parking.wait(DIGITS, 10)
            order.append(number)

        waiting = [asyncio.ensure_future(one(number)) for number in range(3)]
        await asyncio.sleep(0)
        assert (lot.queued(), lot.parking.num_bytes) == (3, 30)
        assert lot.demand.is_urgent.is_set(), "the autoscaler is told at once"
        lot.parking.release("another")
        lot.parking.release(APP)
        assert lot.queued() == 0
        await asyncio.gather(*waiting)
        assert order == [0, 1, 2]
        assert lot.parking.num_bytes == 0

    run(scenario())


def test_one_more_than_may_wait_is_told_when_the_start_is_likely_to_be_over():
    async def scenario():
        lot = Lot()
        lot.parking.expect({APP: 40.0})
        waiting = await lot.park(3)
        lot.time_s += 12
        error = await refused(
            lot, "version 2 has no replica yet, and 3 requests wait for it; try again in 28 s"
        )
        assert error.retry_after_s == 28
        lot.time_s += 27.5
        assert (await refused(lot, "wait for it")).retry_after_s == 1
        lot.time_s += 20
        assert (await refused(lot, "wait for it")).retry_after_s == 20, "overdue by 20 s: as long again"
        lot.time_s += 1000
        assert (await refused(lot, "wait for it")).retry_after_s == 60
        lot.parking.num_gateways = 2
        waiting += await lot.park(2, of=replace(GPT, max_queued=3))
        await refused(lot, "and 2 requests wait for it", of=replace(GPT, max_queued=3))
        lot.parking.release(GPT.app)
        lot.parking.release(APP)
        await asyncio.gather(*waiting)
        assert lot.parking._starts[APP] == 1059.5, "what it took is expected from then on"
        lot.parking.expect({APP: 40.0})
        assert lot.parking._starts[APP] == 1059.5

    run(scenario())


def test_a_key_that_has_all_places_keeps_nobody_out():
    async def scenario():
        lot, many = Lot(), replace(DIGITS, max_queued=6)
        greedy, heavy = account("greedy"), account("heavy", weight=2)
        waiting = await lot.park(6, of=many, by=greedy)
        await refused(lot, "and 6 requests wait for it", of=many, by=greedy)
        waiting += await lot.park(4, of=many, by=heavy)
        await refused(lot, "and 10 requests wait for it", of=many, by=heavy)
        waiting += await lot.park(of=many, by=account("c"))
        waiting += await lot.park(of=many, by=account("d"))
        await refused(lot, "and 12 requests wait for it", of=many, by=account("e"))
        assert not any(task.done() for task in waiting), "nobody who waits has to go"
        assert (lot.queued(), lot.parking.num_bytes) == (12, 120)
        lot.parking.release(APP)
        await asyncio.gather(*waiting)
        assert lot.parking.num_bytes == 0

    run(scenario())


def test_what_a_key_waits_for_leaves_it_no_share_where_that_takes_all_places():
    async def scenario():
        lot, many = Lot(), replace(DIGITS, max_queued=4)
        waiting = await lot.park(4, of=many, by=account("i"))
        await refused(lot, "and 4 requests wait for it", of=many, by=account("s", priority="shadow"))
        waiting += await lot.park(2, of=many, by=account("j"))
        lot.parking.release(APP)
        await asyncio.gather(*waiting)
        waiting = await lot.park(4, of=many, by=account("s", priority="shadow"))
        waiting += await lot.park(4, of=many, by=account("i"))
        lot.parking.release(APP)
        await asyncio.gather(*waiting)

    run(scenario())


def test_a_key_that_has_half_of_the_bytes_leaves_the_others_theirs():
    async def scenario():
        lot, greedy = Lot(max_bytes=100), account("greedy")
        many = replace(DIGITS, max_queued=50)
        waiting = await lot.park(5, of=many, by=greedy)
        await refused(lot, "50 of 100 bytes of bodies wait on this gateway", of=many, by=greedy)
        waiting += await lot.park(of=GPT, size=15, by=account("b"))
        await refused(lot, "65 of 100 bytes .*, of which a key has its share", size=11, by=account("b"))
        waiting += await lot.park(of=GPT, size=10, by=account("b"))
        await refused(lot, "75 of 100 bytes", size=1, by=account("b"))
        await refused(lot, "75 of 100 bytes", size=1, of=GPT, by=account("s", priority="shadow"))
        waiting += await lot.park(size=25, of=GPT, by=account("c"))
        await refused(lot, "100 of 100 bytes", size=1, of=GPT, by=account("d"))
        waiting[0].cancel()
        await asyncio.sleep(0)
        waiting += await lot.park(size=10, of=GPT, by=account("d"))
        lot.parking.release(APP)
        lot.parking.release(GPT.app)
        await asyncio.gather(*waiting[1:])
        assert lot.parking.num_bytes == 0

    run(scenario())


def test_keys_go_on_in_turns_by_weight_within_priorities():
    async def scenario():
        lot, order, many = Lot(), [], replace(DIGITS, max_queued=9)
        accounts = {"a": account("a"), "b": account("b", weight=2), "s": account("s", priority="shadow")}

        async def one(key: str, number: int) -> None:
            await lot.parking.wait(many, 10, ticket=ticket(accounts[key]))
            order.append(f"{key}{number}")

        asked = ["s0", "a0", "a1", "a2", "b0", "b1", "b2"]
        waiting = [asyncio.ensure_future(one(name[0], int(name[1]))) for name in asked]
        await asyncio.sleep(0)
        assert len(lot.parking.release(APP)) == 7
        await asyncio.gather(*waiting)
        assert order == ["a0", "b0", "b1", "a1", "b2", "a2", "s0"]

    run(scenario())


def test_what_is_parked_costs_as_much_however_much_there_is():
    async def scenario(number: int) -> float:
        lot, many = Lot(max_bytes=10**9), replace(DIGITS, max_queued=10 * number)
        keys = [account(str(index)) for index in range(number)]
        waiting = [await lot.park(3, of=many, by=key) for key in keys]
        began_s = time.perf_counter()
        for key in keys[:20] * 10:
            lot.parking._check(many, lot.parking._lots[APP], 10, None, ticket(key))
        took_s = time.perf_counter() - began_s
        lot.parking.release(APP)
        await asyncio.gather(*(task for tasks in waiting for task in tasks))
        return took_s

    few_s, many_s = run(scenario(20)), run(scenario(400))
    assert many_s < 5 * few_s + 0.001


def test_a_start_of_which_nothing_is_known_is_guessed():
    async def scenario():
        lot = Lot(max_bytes=5)
        error = await refused(lot, "0 of 5 bytes of bodies wait on this gateway")
        assert error.retry_after_s == FIRST_START_S
        assert lot.queued() == 1, "he will come again, and is to find a replica"
        lot.parking.release(APP)
        assert lot.queued() == 0

    run(scenario())


def test_bytes_are_bounded_over_all_applications():
    async def scenario():
        lot = Lot(max_bytes=100)
        first, second = account("a"), account("b")
        waiting = await lot.park(1, of=GPT, size=60, by=first)
        await refused(lot, "60 of 100 bytes of bodies wait on this gateway", size=41)
        waiting += await lot.park(1, size=40, by=second)
        waiting[0].cancel()
        await asyncio.sleep(0)
        assert lot.parking.num_bytes == 40
        assert lot.queued(GPT.app) == 0
        waiting += await lot.park(1, size=60, by=first)
        lot.parking.release(APP)
        await asyncio.gather(*waiting[1:])

    run(scenario())


def test_nobody_waits_longer_than_he_can_and_the_start_goes_on_for_him():
    async def scenario():
        lot = Lot()
        error = await refused(lot, "no replica for the request in its time; try again in 15 s", left_s=0.005)
        assert error.retry_after_s == 15
        assert (lot.parking.num_bytes, lot.queued()) == (0, 1)
        lot.time_s += 15 + 4.9
        lot.parking._close_if_left(APP, lot.parking._lots[APP])
        assert lot.queued() == 1
        lot.time_s += 0.2
        lot.parking._close_if_left(APP, lot.parking._lots[APP])
        assert lot.queued() == 0, "he did not come"

    run(scenario())


def test_who_cannot_wait_as_long_as_starts_take_is_told_so_at_once():
    async def scenario():
        lot = Lot()
        lot.parking.expect({APP: 12.0})
        error = await refused(lot, "its start takes 12 s, and the request waits 2 s", left_s=2.0)
        assert error.retry_after_s == 12
        assert lot.queued() == 1, "the start is wanted all the same"
        lot.time_s += 11
        [waiting] = await lot.park(left_s=2.0)
        lot.time_s += 5  # it is overdue: nothing is known
        [another] = await lot.park(left_s=2.0)
        lot.parking.release(APP)
        await asyncio.gather(waiting, another)

    run(scenario())


def test_a_client_that_goes_leaves_nothing_behind():
    async def scenario():
        lot = Lot()
        first, second = await lot.park(2)
        first.cancel()
        await asyncio.sleep(0)
        assert (lot.queued(), lot.parking.num_bytes) == (1, 10)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert (lot.queued(), lot.parking.num_bytes, lot.parking._lots) == (0, 0, {})

    run(scenario())


def test_a_start_that_fails_is_waited_for_again_unless_the_next_would_fail_too():
    async def scenario():
        lot = Lot()
        waiting = await lot.park(2)
        lot.parking.fail("another", Trouble(9, "x", is_final=True))
        lot.parking.fail(APP, Trouble(1, "OSError: no space left", is_final=False))
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting), "Serve tries again"
        await refused(
            lot, r"in its time \(its last start failed: OSError: no space left\); try", left_s=0.001
        )
        lot.parking.fail(APP, Trouble(2, "code/net.py is missing", is_final=True))
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(error) for error in found} == {ServiceError}
        assert {str(error) for error in found} == {
            "model 'digits' version 2 has no replica: code/net.py is missing"
        }
        assert (lot.queued(), lot.parking.num_bytes) == (0, 0)
        [new] = await lot.park()
        assert lot.queued() == 1, "who comes later has the next try"
        lot.parking.keep_only([])
        with pytest.raises(ServiceError, match="it is not served any more"):
            await new
        assert lot.parking._starts == {}

    run(scenario())


def test_texts_are_told_apart():
    async def scenario():
        lot = Lot()
        [text] = await lot.park(of=GPT)
        assert lot.demand._of(GPT.app).waiting == (1, 1)
        lot.parking.release(GPT.app)
        await text

    run(scenario())


def test_bytes_of_values():
    inputs = {"a": np.zeros((2, 3), np.float32), "b": np.array([["ab"], ["c"]], object)}
    assert num_bytes(inputs) == 24 + 12
