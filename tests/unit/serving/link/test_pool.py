from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack

import numpy as np
import pytest

from eagleray.serving.link import pool as pool_module
from eagleray.serving.link import tensors
from eagleray.serving.link.client import connect
from eagleray.serving.link.frames import Kind
from eagleray.serving.link.pool import Pool
from eagleray.serving.link.retries import RetryBudget
from support.links import (
    KEY,
    MAX_FRAME_BYTES,
    RING,
    TIMINGS,
    Served,
    answered,
    body_of,
    filled,
    has_link,
    num_free,
    run,
    serving,
    until,
)

SMALL = tensors.write({"x": np.ones(2, np.float32)})


def pool_of(*served: Served, **options) -> Pool:
    settings = {"node": "n", "max_frame_bytes": MAX_FRAME_BYTES, "ring": RING}
    pool = Pool(KEY, **{**settings, **options})
    pool.update([one.address for one in served])
    return pool


def begun(pool: Pool, **options) -> asyncio.Future:
    return answered(lambda take: pool.infer(SMALL, options.pop("deadline_ms", 0), take, **options))


async def opened(pool: Pool, count: int) -> None:
    await until(lambda: len(pool.links) == count, f"{count} links")


def with_replicas(count: int, main) -> None:
    with ExitStack() as stack:
        served = [stack.enter_context(serving()) for _ in range(count)]
        run(main(*served))


def held_by(served: Served) -> int:
    return len(served.handler.calls)


class TestBudget:
    def test_a_tenth_of_the_requests_and_a_little_to_begin_with(self) -> None:
        budget = RetryBudget(0.1, most=5, start=2)
        assert [budget.spend() for _ in range(3)] == [True, True, False]
        tries = 0
        for _ in range(1000):
            budget.earn()
            tries += budget.spend()
        assert tries in (99, 100)

    def test_it_does_not_save_up_more_than_it_may(self) -> None:
        budget = RetryBudget(0.1, most=5, start=2)
        for _ in range(1000):
            budget.earn()
        assert sum(budget.spend() for _ in range(100)) == 5


class TestChoice:
    def test_the_less_busy_of_two(self) -> None:
        async def main(*served: Served) -> None:
            pool = pool_of(*served)
            await has_link(pool)
            await opened(pool, 2)
            for one in served:
                one.handler.is_holding = True
            held = [begun(pool) for _ in range(20)]
            assert [link.in_flight for link in pool.links] == [10, 10]
            assert pool.in_flight == 20
            await pool.close()
            assert {answer.kind for answer in await asyncio.gather(*held)} == {Kind.LOST}

        with_replicas(2, main)

    def test_of_many_none_is_left_out_and_none_is_flooded(self) -> None:
        async def main(*served: Served) -> None:
            pool = pool_of(*served)
            await opened(pool, 4)
            for one in served:
                one.handler.is_holding = True
            held = [begun(pool) for _ in range(200)]
            assert max(link.in_flight for link in pool.links) < 60
            assert min(link.in_flight for link in pool.links) > 40
            besides = pool.links[0]
            assert Counter(pool.choose(besides) for _ in range(300))[besides] == 0
            await pool.close()
            await asyncio.gather(*held)

        with_replicas(4, main)

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_one_that_drains_is_not_chosen(self, count: int) -> None:
        async def main(*served: Served) -> None:
            pool = pool_of(*served)
            await opened(pool, count)
            for number, one in enumerate(served):
                drained = next(link for link in pool.links if link.instance == one.address["instance"])
                assert pool.choose() is not None
                one.server.drain()
                await until(lambda drained=drained: drained.is_draining)
                assert all(pool.choose() is not drained for _ in range(100))
                if number == count - 2:
                    last = pool.choose()
                    assert pool.choose(besides=last) is None
            assert pool.choose() is None
            assert pool.infer(SMALL, 0, print) is None
            assert pool.generate(b"", 0, print, print) is None
            await pool.close()

        with_replicas(count, main)

    def test_no_replica(self) -> None:
        async def main() -> None:
            pool = pool_of()
            assert pool.choose() is None
            await pool.close()

        run(main())


class TestSecondTries:
    def test_a_request_that_a_draining_replica_did_not_begin(self) -> None:
        async def main(first: Served, second: Served) -> None:
            pool = pool_of(first)
            await opened(pool, 1)
            (link,) = pool.links
            pool.update([first.address, second.address])
            await opened(pool, 2)
            other = next(one for one in pool.links if one is not link)
            first.do(lambda: [session.drain("stops") for session in first.server._sessions])
            pool._links.remove(other)
            small = begun(pool, is_idempotent=False)
            slot, head, length = filled(link, np.ones(20_000, np.float32))
            large = answered(lambda take: pool.infer_in_slot(link, slot, 0, length, head, 900, take))
            pool._links.append(other)
            for answer in await asyncio.gather(small, large):
                assert answer.kind == Kind.RESULT
                assert tensors.read(body_of(answer))["x"][0] == 2.0
                answer.release()
            await until(lambda: num_free(link) == RING.slots)
            await pool.close()

        with_replicas(2, main)

    def test_not_when_the_budget_is_spent_or_the_deadline_passed_or_nobody_waits(self) -> None:
        async def main(first: Served, second: Served) -> None:
            first.handler.is_holding = True
            pool = pool_of(first, budget=RetryBudget(0.0, start=1))
            await opened(pool, 1)
            (link,) = pool.links
            late = begun(pool, deadline_ms=10)
            cancelled: list = []
            request = pool.infer(SMALL, 0, cancelled.append)
            assert request is not None
            request.cancel()
            request.cancel()
            held = [begun(pool) for _ in range(3)]
            await until(lambda: held_by(first) == 5)
            await asyncio.sleep(0.02)
            pool.update([first.address, second.address])
            await opened(pool, 2)
            link.close()
            kinds = [answer.kind for answer in await asyncio.gather(late, *held)]
            assert kinds[0] == Kind.LOST
            assert sorted(kinds[1:]) == [Kind.LOST, Kind.LOST, Kind.RESULT]
            assert cancelled == []
            await pool.close()

        with_replicas(2, main)

    def test_once_only(self) -> None:
        async def main(first: Served, second: Served) -> None:
            first.handler.is_holding = second.handler.is_holding = True
            pool = pool_of(first, second)
            await opened(pool, 2)
            held = begun(pool)
            await until(lambda: held_by(first) + held_by(second) == 1)
            for _ in range(2):
                for link in list(pool.links):
                    if link.in_flight:
                        link.close()
                await until(lambda: held.done() or held_by(first) + held_by(second) == 2)
            assert (await held).kind == Kind.LOST
            await pool.close()

        with_replicas(2, main)

    @pytest.mark.parametrize("kind", ["refuse", "fail", "expire"])
    def test_a_word_of_the_replica_is_not_asked_for_twice(self, kind: str) -> None:
        async def main(*served: Served) -> None:
            for one in served:
                one.handler.answer = lambda call: getattr(call, kind)("word")
            pool = pool_of(*served)
            await opened(pool, 2)
            assert (await begun(pool)).message == "word"
            assert sum(sum(one.handler.flushes) for one in served) == 1
            await pool.close()

        with_replicas(2, main)

    def test_a_stream_of_which_a_piece_came_is_not_begun_again(self) -> None:
        async def main(first: Served, second: Served) -> None:
            pool = pool_of(first)
            await opened(pool, 1)
            (link,) = pool.links
            pieces: list = []
            end = answered(lambda take: pool.generate(b"", 0, lambda *piece: pieces.append(piece), take))
            await until(lambda: bool(first.handler.generating))
            pool.update([first.address, second.address])
            await opened(pool, 2)
            first.do(lambda: first.handler.generating[0].piece(b"a", 1))
            await until(lambda: bool(pieces))
            link.close()
            assert (await end).kind == Kind.LOST
            assert second.handler.generating == []
            await pool.close()

        with_replicas(2, main)


class TestMembers:
    def test_a_link_that_is_lost_comes_back(self) -> None:
        async def main(served: Served) -> None:
            pool = pool_of(served)
            await opened(pool, 1)
            (link,) = pool.links
            link.close()
            await until(lambda: not pool.links)
            await has_link(pool)
            assert (await begun(pool)).kind == Kind.RESULT
            await pool.close()

        with_replicas(1, main)

    def test_one_that_is_lost_before_it_is_known_is_not_chosen(self, monkeypatch) -> None:
        async def main(served: Served) -> None:
            async def lost_at_once(*arguments, **options):
                link = await connect(*arguments, **options)
                if not opened_links:
                    link.close()
                    await until(lambda: link._transport is None)
                opened_links.append(link)
                return link

            opened_links: list = []
            monkeypatch.setattr(pool_module, "connect", lost_at_once)
            pool = pool_of(served)
            await opened(pool, 1)
            assert pool.links == opened_links[1:]
            await pool.close()

        with_replicas(1, main)

    def test_a_replica_that_is_no_longer_listed_ends_what_it_has(self) -> None:
        async def main(served: Served) -> None:
            served.handler.is_holding = True
            pool = pool_of(served)
            await opened(pool, 1)
            (link,) = pool.links
            held = begun(pool)
            await until(lambda: held_by(served) == 1)
            pool.update([])
            assert pool.choose() is None
            assert link.is_open
            served.do(lambda: served.handler.answer(served.handler.calls[0]))
            assert (await held).kind == Kind.RESULT
            await until(lambda: not link.is_open)
            await pool.close()

        with_replicas(1, main)

    @pytest.mark.parametrize(("node", "has_socket"), [("n", True), ("n", False), ("elsewhere", True)])
    def test_the_unix_socket_on_the_same_node_and_tcp_elsewhere(self, node: str, has_socket: bool) -> None:
        async def main(served: Served) -> None:
            address = dict(served.address) if has_socket else {**served.address, "unix": "/none.sock"}
            pool = Pool(KEY, node=node, max_frame_bytes=MAX_FRAME_BYTES, ring=RING)
            pool.update([address])  # type: ignore[list-item]
            await opened(pool, 1)
            slot = pool.links[0].take_slot()
            assert (slot is not None) == (node == "n" and has_socket)
            if slot is not None:
                slot.release()
            assert (await begun(pool)).timings == TIMINGS
            await pool.close()

        with_replicas(1, main)

    def test_who_cannot_be_reached_is_said(self) -> None:
        async def main(served: Served) -> None:
            good = served.address
            pool = pool_of()
            pool.update([
                {**good, "instance": "f" * 32},
                {**good, "instance": "e" * 32, "unix": "", "tcp": "127.0.0.1:1"},
                {**good, "protocol": 2},
            ])  # fmt: skip
            await until(lambda: all(pool.problems().values()) and len(pool.problems()) == 2)
            assert "another one is there now" in pool.problems()["f" * 32]
            assert "cannot be reached" in pool.problems()["e" * 32]
            assert not pool.links
            await pool.close()

        with_replicas(1, main)
