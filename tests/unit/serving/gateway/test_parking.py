"""Requests that wait for a first replica: how many, how large, how long, and what who has to go is told."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from eagleray.errors import ServiceError
from eagleray.serving.gateway.demand import Demand
from eagleray.serving.gateway.parking import Parking, num_bytes
from eagleray.serving.services import Trouble
from eagleray.serving.transport import Overloaded
from eagleray.serving.waiting import FIRST_START_S
from support.links import run
from support.serving import target

DIGITS, GPT = target("digits", 2, max_queued=3), target("gpt", 1)
APP = DIGITS.app


class Lot:
    """A parking with a clock that a test moves."""

    def __init__(self, **options) -> None:
        self.time_s = 100.0
        self.demand = Demand()
        self.parking = Parking(self.demand, clock=lambda: self.time_s, **options)

    async def park(self, number: int = 1, of=DIGITS, size: int = 10, left_s: float | None = None, key=""):
        """So many more wait."""
        found = [asyncio.ensure_future(self.parking.wait(of, size, left_s, key=key)) for _ in range(number)]
        await asyncio.sleep(0)
        return found

    def queued(self, app: str = APP) -> int:
        """As the autoscaler is told."""
        return self.demand._of(app).waiting[0]


async def refused(lot: Lot, match: str, **options) -> Overloaded:
    with pytest.raises(Overloaded, match=match) as found:
        await lot.parking.wait(
            options.pop("of", DIGITS), options.pop("size", 10), options.pop("left_s", None), **options
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


def test_a_key_that_has_all_places_gives_them_to_others_until_each_has_as_many():
    async def scenario():
        lot, many = Lot(), replace(DIGITS, max_queued=6)
        greedy = await lot.park(6, of=many, key="greedy")
        await refused(lot, "and 6 requests wait for it", of=many, key="greedy")
        others = await lot.park(2, of=many, key="b") + await lot.park(2, of=many, key="c")
        await asyncio.sleep(0)
        assert [task.done() for task in greedy] == [False] * 2 + [True] * 4, "the last ones go first"
        with pytest.raises(Overloaded, match="of other API keys wait for it, too; try again in 15 s"):
            await greedy[-1]
        for key in ("greedy", "b", "c", "d"):
            found = await lot.park(of=many, key=key)
            await asyncio.sleep(0)
            if key == "d":
                assert not found[0].done(), "one that has none takes another's second"
                others += found
            else:
                with pytest.raises(Overloaded, match="6 requests wait for it"):
                    await found[0]
        assert (lot.queued(), lot.parking.num_bytes) == (6, 60)
        lot.parking.release(APP)
        await asyncio.gather(*greedy, *others, return_exceptions=True)
        assert lot.parking.num_bytes == 0

    run(scenario())


def test_keys_go_on_in_turns():
    async def scenario():
        lot, order, many = Lot(), [], replace(DIGITS, max_queued=9)

        async def one(key: str, number: int) -> None:
            await lot.parking.wait(many, 10, key=key)
            order.append((key, number))

        asked = [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 0), ("b", 1)]
        waiting = [asyncio.ensure_future(one(*pair)) for pair in asked]
        await asyncio.sleep(0)
        lot.parking.release(APP)
        await asyncio.gather(*waiting)
        assert order == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("a", 2)]

    run(scenario())


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
        waiting = await lot.park(1, of=GPT, size=60)
        await refused(lot, "60 of 100 bytes of bodies wait on this gateway", size=41)
        waiting += await lot.park(1, size=40)
        waiting[0].cancel()
        await asyncio.sleep(0)
        assert lot.parking.num_bytes == 40
        assert lot.queued(GPT.app) == 0
        waiting += await lot.park(1, size=60)
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
