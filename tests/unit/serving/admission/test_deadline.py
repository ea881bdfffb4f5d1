"""When an answer is to be expected: the fit of batches' times, and what follows for who comes now."""

from __future__ import annotations

import random

import pytest

from eagleray.errors import InputError
from eagleray.serving.admission.deadline import MARGIN, Forecast, timeout_s


@pytest.mark.parametrize(
    ("header", "expected_s"), [(None, 60.0), ("250", 0.25), ("1", 0.001), ("999999999", 60.0)]
)
def test_the_clients_time(header: str | None, expected_s: float) -> None:
    assert timeout_s(header, 60.0) == expected_s


@pytest.mark.parametrize("header", ["", "0", "-1", "1.5", "1e3", " 5", "²", "ms", "10000000000", "5, 5"])
def test_a_time_that_is_none(header: str) -> None:
    with pytest.raises(InputError, match="x-request-timeout-ms: expected whole milliseconds from 1 on, not"):
        timeout_s(header, 60.0)


def test_nothing_is_foretold_before_anything_was_seen() -> None:
    assert (Forecast().answer_s(1000), Forecast().is_known) == (0.0, False)


def test_the_fit_finds_what_a_batch_and_what_each_of_it_costs() -> None:
    forecast, rng = Forecast(replicas=2, max_batch=10), random.Random(1)
    for _ in range(200):
        batch = rng.randint(1, 10)
        forecast.observe((0.010 + 0.002 * batch) * rng.uniform(0.95, 1.05), batch)
    assert forecast.answer_s(0) == pytest.approx(MARGIN * 0.012, rel=0.1)
    assert forecast.answer_s(18) == pytest.approx(MARGIN * (0.010 + 10 * 0.002), rel=0.1)
    assert forecast.answer_s(98) == pytest.approx(MARGIN * (5 * 0.010 + 50 * 0.002), rel=0.1)


def test_batches_of_one_size_say_what_one_of_them_costs() -> None:
    forecast = Forecast(max_batch=4)
    for _ in range(10):
        forecast.observe(0.2, 4)
    assert forecast.answer_s(7) == pytest.approx(MARGIN * 0.4)


@pytest.mark.parametrize(
    "times", [[(0.2, 1), (0.1, 8)] * 20, [(0.1, 1), (1.6, 8)] * 20, [(0.0, 1), (0.0, 3)] * 3]
)
def test_no_part_is_negative(times: list[tuple[float, int]]) -> None:
    forecast = Forecast(max_batch=8)
    for seconds, batch in times:
        forecast.observe(seconds, batch)
    assert forecast._fixed_s >= 0.0
    assert forecast._per_item_s >= 0.0
    assert forecast.answer_s(100) >= forecast.answer_s(0)


def test_what_was_is_forgotten() -> None:
    forecast = Forecast()
    for _ in range(100):
        forecast.observe(1.0, 1)
    for _ in range(300):
        forecast.observe(0.01, 1)
    assert forecast.answer_s(0) == pytest.approx(0.012, rel=0.3)
