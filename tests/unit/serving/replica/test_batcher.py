"""Which requests share a pass, which run at once, which never; the test moves the clock and the thread."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from eagleray.serving.replica.asking import Asking
from eagleray.serving.replica.batcher import PATIENCE_S, Batcher, Cancelled, Expired, Request
from eagleray.serving.replica.fit import Fits

SLOW, QUICK = (10e-3, 1e-3), (20e-6, 1e-6)
"""Seconds of a pass: fixed, and of each sample."""


class World:
    """A batcher, and all that it is given."""

    def __init__(self, speed=SLOW, *, max_batch_size=4, knows_speed=True, **options) -> None:
        self.now_s, self.passes, self.broken = 100.0, [], None
        self.speed = speed
        self.in_thread, self.in_loop = deque(), deque()
        self.fit = Fits()
        if knows_speed:
            for size in (1, max_batch_size, 1):
                self.fit.seed(size, speed[0] + speed[1] * size)
        self.batcher = Batcher(
            self.run,
            max_batch_size=max_batch_size,
            fit=self.fit,
            executor=self,
            call_soon=self.in_loop.append,
            clock=lambda: self.now_s,
            **options,
        )
        self.ended: dict[str, object] = {}

    def submit(self, work) -> None:
        self.in_thread.append(work)

    def run(self, inputs):
        rows = inputs["x"]
        self.passes.append(rows[:, 0].tolist())
        if self.broken is not None and (rows[:, 0] == self.broken).any():
            raise ValueError("it is broken")
        self.now_s += self.speed[0] + self.speed[1] * len(rows)
        return {"y": 10 * rows}

    def ask(self, number: int, *, size: int = 1, width: int = 1, within_s: float = float("inf")) -> Request:
        def on_answer(answer) -> None:
            assert number not in self.ended
            value = answer.outputs["y"].ravel().tolist() if answer.outputs else type(answer.error)
            self.ended[number] = value
            self.timings = answer.timings

        inputs = {"x": np.full((size, width), number, np.float32)}
        made = Request(inputs, on_answer, arrived_s=self.now_s, deadline_s=self.now_s + within_s)
        self.batcher.submit(made)
        return made

    def thread(self) -> bool:
        """Let the thread do what it was told last; whether there was anything."""
        if not self.in_thread:
            return False
        self.in_thread.popleft()()
        return True

    def settle(self) -> None:
        self.batcher.flush()
        while self.thread() or self.in_loop:
            while self.in_loop:
                self.in_loop.popleft()()


def test_a_lone_request_runs_at_once_and_what_comes_meanwhile_shares_the_next_pass():
    world = World()
    world.ask(1)
    world.batcher.flush()
    for number in (2, 3):
        world.ask(number)
        world.batcher.flush()
    assert len(world.in_thread) == 1, "the model is told once"
    assert world.thread()
    assert world.passes == [[1.0, 2.0, 3.0]], "its thread was not free yet: they came in time"
    world.ask(4)
    world.batcher.flush()
    for number in range(5, 11):
        world.ask(number)
    world.settle()
    assert world.passes[1:] == [[4.0, 5.0, 6.0, 7.0], [8.0, 9.0, 10.0]]
    assert world.ended == {number: [10.0 * number] for number in range(1, 11)}
    assert (world.batcher.num_waiting, world.batcher.num_running) == (0, 0)
    assert not world.batcher._is_busy


def test_the_thread_goes_on_by_itself_while_the_loop_is_busy():
    world = World()
    for number in range(6):
        world.ask(number)
    world.batcher.flush()
    assert world.thread()
    assert world.thread()
    assert world.passes == [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0]]
    assert world.ended == {}
    world.settle()
    assert len(world.ended) == 6


def test_a_short_pass_runs_in_the_loop_at_once():
    world = World(QUICK)
    world.ask(1)
    world.batcher.flush()
    assert (world.ended, world.in_thread, world.in_loop) == ({1: [10.0]}, deque(), deque())
    for number in range(2, 8):
        world.ask(number)
    world.batcher.flush()
    assert world.passes == [[1.0], [2.0, 3.0, 4.0, 5.0]]
    assert list(world.in_loop), "the loop reads what came before it goes on"
    world.settle()
    assert len(world.ended) == 7


@pytest.mark.parametrize(
    ("speed", "options"),
    [(SLOW, {}), (QUICK, {"knows_speed": False}), (QUICK, {"may_run_in_loop": False})],
    ids=["long", "of unknown length", "of a model that the thread uses for more"],
)
def test_other_passes_run_in_the_thread(speed, options):
    world = World(speed, **options)
    world.ask(1)
    world.batcher.flush()
    assert (len(world.in_thread), world.passes) == (1, [])


def test_what_a_pass_takes_is_learned():
    world = World(QUICK, knows_speed=False)
    for number in range(3):
        world.ask(number)
        world.settle()
    world.ask(9)
    world.batcher.flush()
    assert 9 in world.ended, "in the loop, now that it is known to be short"
    world.speed = SLOW
    for number in range(10, 20):
        world.ask(number)
        world.batcher.flush()
    assert world.in_thread


def test_waiting_for_the_interpreter_keeps_no_short_pass_in_the_thread():
    world = World(QUICK)
    world.batcher._busy_clock = lambda: world.now_s / 100  # most of the time is none of the pass's own
    world.speed = (5e-3, 0.0)
    for number in range(10):
        world.ask(number)
        world.batcher._executor.submit(world.batcher._run_in_thread)
        world.settle()
    assert world.fit.seconds(("x", np.dtype(np.float32), (1,)), 1) == pytest.approx(5e-3)
    world.ask(10)
    world.batcher.flush()
    assert 10 in world.ended


def test_a_pass_is_no_longer_than_its_earliest_deadline_allows():
    world = World(max_batch_size=16)
    world.ask(0, within_s=13.5e-3)
    for number in range(1, 6):
        world.ask(number, within_s=1)
    world.settle()
    assert world.passes == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    world.ask(6, within_s=5e-3)
    for number in (7, 8, 9, 10):
        world.ask(number, within_s=1)
    world.settle()
    assert world.passes[-1] == [6.0, 7.0, 8.0, 9.0, 10.0], "late as it is, nobody need hurry for it"


def test_who_is_in_a_hurry_goes_first_but_not_for_ever():
    world = World(max_batch_size=1)
    for number in (0, 1):
        world.ask(number)
    world.ask(2, within_s=0.1)
    world.settle()
    assert world.passes == [[2.0], [0.0], [1.0]]
    world.ask(3)
    world.now_s += PATIENCE_S
    world.ask(4, within_s=0.1)
    world.settle()
    assert world.passes[-2:] == [[3.0], [4.0]]


def test_expired_and_cancelled_requests_are_not_computed():
    world = World(max_batch_size=2)
    first = world.ask(0)
    world.batcher.flush()
    _, gone, kept = world.ask(1, within_s=5e-3), world.ask(2), world.ask(3)
    world.batcher.cancel(gone)
    world.batcher.cancel(gone)
    world.thread()  # 0 and 1 run for 12 ms
    assert world.passes == [[1.0, 0.0]]
    late = world.ask(4, within_s=5e-3)
    world.batcher.cancel(first)
    world.batcher.cancel(kept)
    assert world.ended == {2: Cancelled}, "the thread has taken the next pass before it tells of this one"
    world.now_s += 10e-3
    world.settle()
    assert world.passes == [[1.0, 0.0], [3.0]]
    assert world.ended == {0: [0.0], 1: [10.0], 2: Cancelled, 3: [30.0], 4: Expired}
    assert world.batcher.num_waiting == 0
    counts = world.batcher.counts
    assert (counts.requests, counts.ended, counts.done) == (5, 5, 3)
    assert [one.inputs for one in (late, gone, kept)] == [None] * 3, "their values are free"
    world.batcher.cancel(kept)


def test_only_requests_of_one_shape_share_a_pass_and_none_starves():
    world = World()
    world.ask(0, width=2)
    for number in range(1, 9):
        world.ask(number, width=1 + number % 2)
        world.now_s += 1e-4
    world.settle()
    assert [len(found) for found in world.passes] == [4, 4, 1]
    assert world.passes[0][0] == 0.0
    assert len(world.ended) == 9


def test_a_request_larger_than_a_batch_runs_alone_and_an_order_is_kept():
    world = World()
    for number, size in enumerate((3, 2, 9, 1)):
        world.ask(number, size=size)
    world.settle()
    assert [len(found) for found in world.passes] == [3, 2, 9, 1]


def test_a_request_that_breaks_its_pass_breaks_no_other():
    world = World()
    world.broken = 2.0
    for number in range(4):
        world.ask(number)
    world.settle()
    assert world.ended == {0: [0.0], 1: [10.0], 2: ValueError, 3: [30.0]}
    world.ask(5)
    world.settle()
    assert world.ended[5] == [50.0]


def test_a_model_that_ends_its_thread_is_an_error_like_others():
    world = World()
    world.batcher._run = lambda _: exit(3)
    world.ask(1)
    world.settle()
    assert world.ended == {1: RuntimeError}
    assert not world.batcher._is_busy


def test_an_answer_that_nobody_can_take_keeps_no_other_from_its_own():
    world = World()
    world.ask(1)
    world.batcher.submit(Request({"x": np.zeros((1, 1))}, lambda _: 1 / 0, arrived_s=world.now_s))
    world.ask(2)
    world.settle()
    assert world.ended == {1: [10.0], 2: [20.0]}


def test_where_the_time_went():
    world = World()
    world.ask(1)
    world.now_s += 7e-3
    world.ask(2)
    world.settle()
    queue_s, batch_s, infer_s, size = world.timings
    assert (round(queue_s, 6), round(batch_s, 6), round(infer_s, 6), size) == (0, 0, 12e-3, 2)
    counts = world.batcher.counts
    assert (counts.requests, counts.ended, counts.came, counts.done) == (2, 2, 2, 2)
    assert counts.p95_s(world.now_s) == pytest.approx((19e-3, 7e-3))
    assert counts.p95_s(world.now_s + 4) is None


def rows(number: int):
    return {"x": np.full((1, 1), number, np.float32)}


def test_coroutines_share_passes_from_a_real_loop_and_thread():
    sizes, release = [], threading.Event()

    def run(inputs):
        sizes.append(len(inputs["x"]))
        release.wait(10)
        return {"y": 10 * inputs["x"]}

    async def scenario():
        loop = asyncio.get_running_loop()
        batcher = Batcher(
            run, max_batch_size=8, fit=Fits(), executor=executor, call_soon=loop.call_soon_threadsafe
        )
        asking = Asking(batcher, loop.call_soon_threadsafe)

        def ask(number: int):
            return asyncio.ensure_future(asking.submit(rows(number), arrived_s=loop.time()))

        first = [ask(number) for number in range(3)]
        while not sizes:
            await asyncio.sleep(0)
        others = [ask(number) for number in range(3, 8)]
        await asyncio.sleep(0)
        others[0].cancel()
        while batcher.num_waiting != 4:
            await asyncio.sleep(0)
        release.set()
        answers = await asyncio.gather(*first, *others, return_exceptions=True)
        assert isinstance(answers.pop(3), asyncio.CancelledError)
        assert [float(answer["y"][0, 0]) for answer in answers] == [0, 10, 20, 40, 50, 60, 70]
        assert sizes == [3, 4]

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(scenario())
