"""Turns between keys: shares by weight, order within a key, priorities, and what each step costs."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.serving.admission.fair import FairQueue


def drained(queue: FairQueue[Any], most: int = 10**9) -> list[Any]:
    found = []
    while len(found) < most and (item := queue.pop()) is not None:
        found.append(item)
    return found


def test_keys_take_turns_by_weight() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(6):
        queue.push(f"a{number}", "a", 1, "interactive")
        queue.push(f"b{number}", "b", 3, "interactive")
    assert drained(queue, 8) == ["a0", "b0", "b1", "b2", "a1", "b3", "b4", "b5"]
    assert drained(queue) == ["a2", "a3", "a4", "a5"]
    assert (len(queue), queue.pop()) == (0, None)


def test_the_first_priority_waits_for_none_and_the_second_for_the_first_alone() -> None:
    queue: FairQueue[str] = FairQueue()
    for priority in ("shadow", "batch", "interactive"):
        queue.push(priority, priority, 1, priority)
        queue.push(priority, priority + "2", 100, priority)
    assert drained(queue, 3) == ["interactive", "interactive", "batch"]
    queue.push("late", "interactive", 1, "interactive")
    assert drained(queue) == ["late", "batch", "shadow", "shadow"]


def test_a_key_that_changes_its_priority_takes_along_what_waits() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(3):
        queue.push(f"a{number}", "a", 1, "interactive")
    queue.push("b", "b", 1, "interactive")
    queue.push("s", "s", 1, "shadow")
    assert queue.pop() == "a0"
    queue.push("a3", "a", 1, "shadow")
    assert queue.ahead("new", 1, "interactive") == 1.0
    assert drained(queue) == ["b", "s", "a1", "a2", "a3"]
    assert queue._flows == {}
    assert all((band.cost, band.length, band.weight) == (0, 0, 0) for band in queue._bands.values())


def test_what_is_given_up_never_comes() -> None:
    queue: FairQueue[int] = FairQueue()
    entries = [queue.push(number, "a", 1, "interactive") for number in range(5)]
    for number in (0, 2, 4):
        assert queue.cancel(entries[number])
        assert not queue.cancel(entries[number])
    assert len(queue) == 2
    assert drained(queue) == [1, 3]
    assert not queue.cancel(entries[1])
    entry = queue.push(7, "a", 1, "interactive")
    assert queue.cancel(entry)
    assert (queue.pop(), len(queue)) == (None, 0)
    assert queue.ahead("a", 1, "interactive") == 0.0


def test_what_costs_much_is_paid_for_even_one_at_a_time() -> None:
    """A key that keeps one thing of cost 16 waiting gets no more than one that keeps ones of cost 1."""
    queue: FairQueue[str] = FairQueue()
    served: Counter[str] = Counter()
    queue.push("large", "large", 1, "interactive", 16)
    for _ in range(10):
        queue.push("small", "small", 1, "interactive")
    for _ in range(1700):
        item = queue.pop()
        assert item is not None
        served[item] += 16 if item == "large" else 1
        queue.push(item, item, 1, "interactive", 16 if item == "large" else 1)
    assert served["large"] / served["small"] == pytest.approx(1.0, abs=0.05)


def test_a_key_of_large_batches_gets_its_weight_and_no_more() -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    served: Counter[str] = Counter()
    for _ in range(20):
        queue.push(("large", 6400), "large", 1, "interactive", 6400)
    for _ in range(40_000):
        queue.push(("small", 1), "small", 1, "interactive")
    for key, cost in drained(queue, 35_000):
        served[key] += cost
    assert served["large"] / served["small"] == pytest.approx(1.0, abs=0.2), served


def test_what_owes_millions_is_reckoned_and_not_gone_through() -> None:
    queue: FairQueue[str] = FairQueue()
    for key, weight in (("a", 1), ("b", 3), ("c", 7)):
        for _ in range(40):
            queue.push(key, key, weight, "interactive", 4_000_000)
    start_s = time.process_time()
    assert Counter(drained(queue, 55)) == {"a": 5, "b": 15, "c": 35}
    assert time.process_time() - start_s < 1.0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(1, 5), st.integers(1, 300), st.integers(0, 2)),
        max_size=60,
    )
)
def test_rounds_that_are_reckoned_are_as_those_that_are_gone_through(
    steps: list[tuple[str, int, int, int]],
) -> None:
    def order() -> list[Any]:
        queue: FairQueue[int] = FairQueue()
        found: list[Any] = []
        for number, (key, weight, cost, num_popped) in enumerate(steps):
            queue.push(number, key, weight, "interactive", cost)
            found += [queue.pop() for _ in range(num_popped)]
        return found + drained(queue)

    reckoned = order()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FairQueue, "_skip", lambda _queue, _band: None)
        assert order() == reckoned


def test_nobody_has_to_miss_turns_where_nobody_waited() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("a", "a", 1, "interactive", 64)
    assert queue.pop() == "a"
    queue.push("a", "a", 1, "interactive")
    queue.push("b", "b", 1, "interactive")
    assert drained(queue) == ["a", "b"]


def test_what_came_too_late_costs_its_key_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(40):
        queue.push("a", "a", 1, "interactive")
        queue.push("b", "b", 1, "interactive")
    served: Counter[str] = Counter()
    for number in range(40):
        item = queue.pop()
        assert item is not None
        if item == "a" and number < 20:
            queue.forgive("a", 1)
        else:
            served[item] += 1
    assert abs(served["a"] - served["b"]) <= 2, served


@pytest.mark.parametrize("priority", ["interactive", "batch", "shadow"])
def test_of_three_times_too_much_each_key_gets_its_weight(priority: Any) -> None:
    """Random arrivals, 3 times what is served; each key offers more than its due."""
    weights = {"a": 1, "b": 2, "c": 4, "d": 1}
    rng, queue, served = random.Random(7), FairQueue[str](), Counter[str]()
    waiting: Counter[str] = Counter()
    for _ in range(8000):
        for _ in range(3):
            key = rng.choices("abcd", [2, 3, 5, 2])[0]
            if waiting[key] < 50:  # as the deadline sees to it
                queue.push(key, key, weights[key], priority)
                waiting[key] += 1
        item = queue.pop()
        assert item is not None
        waiting[item] -= 1
        served[item] += 1
    for key, weight in weights.items():
        assert served[key] / 8000 == pytest.approx(weight / 8, rel=0.05), served


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["push", "push", "pop", "cancel"]),
            st.integers(0, 5),
            st.integers(-1, 1000),
            st.integers(0, 2),
        ),
        max_size=300,
    )
)
def test_nothing_is_lost_and_order_is_kept_in_each_key(steps: list[tuple[str, int, int, int]]) -> None:
    queue: FairQueue[tuple[int, int]] = FairQueue()
    waiting: dict[int, list[Any]] = {}
    for number, (step, name, cost, band) in enumerate(steps):
        key = 10 * name + band
        if step == "push":
            priority: Any = ("interactive", "batch", "shadow")[band]
            entry = queue.push((key, number), str(key), key % 7 + 1, priority, cost)
            waiting.setdefault(key, []).append(((key, number), entry))
        elif step == "pop":
            item = queue.pop()
            bands = sorted({found % 10 for found, entries in waiting.items() if entries})
            assert (item is None) == (not bands)
            if item is not None:
                assert item[0] % 10 == bands[0], "an earlier priority comes first"
                assert waiting[item[0]].pop(0)[0] == item
        elif waiting.get(key):
            assert queue.cancel(waiting[key].pop(len(waiting[key]) // 2)[1])
        assert len(queue) == sum(map(len, waiting.values()))
    assert len(drained(queue)) == sum(map(len, waiting.values()))
    assert queue._flows == {}, "what is empty is forgotten"


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.integers(0, 30), st.integers(1, 100), min_size=2), st.randoms(use_true_random=False)
)
def test_while_all_have_something_no_key_is_more_than_a_turn_behind(
    weights: dict[int, int], rng: random.Random
) -> None:
    queue: FairQueue[int] = FairQueue()
    for key, weight in weights.items():
        for _ in range(weight * 4):
            queue.push(key, str(key), weight, "batch")
    total = sum(weights.values())
    served = Counter(drained(queue, rng.randrange(1, 3 * total)))
    turns = sum(served.values()) / total
    for key, weight in weights.items():
        assert abs(served[key] - turns * weight) <= weight, (served, weights)


def test_a_key_that_sends_without_end_keeps_a_thousand_others_waiting_for_one_turn() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(5000):
        queue.push("greedy", "greedy", 1, "interactive")
    for number in range(1000):
        queue.push(f"k{number}", f"k{number}", 1, "interactive")
    first = drained(queue, 1001)
    assert Counter(first)["greedy"] == 1
    assert len(set(first)) == 1001
    assert queue.ahead("new", 1, "interactive") == 1.0
    assert queue.ahead("greedy", 1, "interactive") == len(queue)


def test_what_goes_before_a_newcomer() -> None:
    queue: FairQueue[str] = FairQueue()
    assert queue.ahead("a", 1, "batch") == 0.0
    for _ in range(10):
        queue.push("a", "a", 1, "batch")
        queue.push("b", "b", 1, "batch")
    queue.push("c", "c", 1, "interactive")
    assert queue.ahead("a", 1, "batch") == 22.0  # 10 of its own, 11 of b's that goes on coming, and c
    assert queue.ahead("new", 1, "batch") == 3.0
    assert queue.ahead("heavy", 8, "batch") == pytest.approx(1 + 10 / 8 - 1)
    assert queue.ahead("c", 1, "interactive") == 1.0
    assert queue.ahead("s", 1, "shadow") == 21.0
