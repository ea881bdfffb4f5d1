"""Buckets: how much is let through in any stretch of time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.serving.admission.buckets import Bucket


def test_a_burst_then_the_rate() -> None:
    bucket = Bucket(rate=10.0, capacity=3.0, now_s=100.0)
    assert [bucket.has(1.0, 100.0) and bucket.take(1.0) is None for _ in range(4)] == [
        True,
        True,
        True,
        False,
    ]
    assert bucket.wait_s(1.0, 100.0) == pytest.approx(0.1)
    assert not bucket.has(1.0, 100.05)
    assert bucket.has(1.0, 100.1)
    assert bucket.level(1000.0) == 3.0


def test_what_costs_more_than_it_holds_is_let_in_when_it_is_full_and_paid_for_afterwards() -> None:
    bucket = Bucket(rate=100.0, capacity=25.0, now_s=0.0)
    assert bucket.has(1000.0, 0.0)
    bucket.take(1000.0)
    assert bucket.wait_s(1.0, 0.0) == pytest.approx(9.76)
    assert not bucket.has(1.0, 9.7)
    assert bucket.has(1.0, 9.77)
    bucket.give(500.0)
    assert bucket.level(9.77) == 25.0


def test_who_comes_exactly_at_the_rate_is_never_refused() -> None:
    bucket = Bucket(rate=3.0, capacity=1.0, now_s=0.0)
    for number in range(10_000):
        assert bucket.has(1.0, number / 3.0)
        bucket.take(1.0)


def test_another_rate_adds_nothing() -> None:
    bucket = Bucket(rate=10.0, capacity=10.0, now_s=0.0)
    bucket.take(10.0)
    bucket.change(100.0, 50.0, 0.5)
    assert bucket.level(0.5) == pytest.approx(5.0)
    bucket.change(1.0, 2.0, 0.5)
    assert bucket.level(0.5) == 2.0
    bucket.change(0.0, 2.0, 0.5)
    bucket.take(2.0)
    assert bucket.wait_s(1.0, 9.0) == math.inf


def test_a_clock_that_stands_still_or_goes_back_fills_nothing() -> None:
    bucket = Bucket(rate=10.0, capacity=5.0, now_s=10.0)
    bucket.take(5.0)
    assert bucket.level(9.0) == 0.0
    assert bucket.level(10.1) == pytest.approx(1.0)


@given(
    rate=st.floats(0.1, 500),
    capacity=st.floats(1, 100),
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=200),
)
def test_any_stretch_of_time_sees_less_than_a_burst_and_the_rate(
    rate: float, capacity: float, gaps: list[float]
) -> None:
    bucket, now_s, taken = Bucket(rate, capacity, 0.0), 0.0, []
    for gap_s in gaps:
        now_s += gap_s
        while bucket.has(1.0, now_s) and len(taken) < 2000:
            bucket.take(1.0)
            taken.append(now_s)
    for first in range(0, len(taken), 7):
        for last in range(first, len(taken), 11):
            assert last - first + 1 <= capacity + rate * (taken[last] - taken[first]) + 1e-6
