"""What a forward pass takes, learned from passes that are noisy, odd, or all of one size."""

from __future__ import annotations

import random

import pytest

from eagleray.serving.replica.fit import Fits, Line, LineFit

TRUE = Line(fixed_s=2e-3, per_sample_s=0.5e-3)


def taught(sizes, line: Line = TRUE, *, noise: float = 0.0, shape: Line | None = None) -> LineFit:
    drawn, fit = random.Random(7), LineFit(shape)
    for size in sizes:
        fit.observe(size, line.seconds(size) * (1 + noise * drawn.random()))
    return fit


def is_close(found: Line, to: Line, within: float = 0.02, sizes=(1, 4, 16)) -> bool:
    return all(abs(found.seconds(size) / to.seconds(size) - 1) < within for size in sizes)


SIZES = [1, 16, 3, 7, 12, 2, 9, 16, 5, 1] * 10


def test_the_line_is_found():
    assert is_close(taught(SIZES).line(), TRUE)
    noisy = taught(SIZES, noise=0.3).line()
    assert is_close(noisy, Line(TRUE.fixed_s * 1.15, TRUE.per_sample_s * 1.15), within=0.1)


def test_a_first_call_and_pauses_do_not_count():
    fit = LineFit(shape=TRUE)
    fit.observe(1, 3.0)
    for number, size in enumerate(SIZES):
        fit.observe(size, TRUE.seconds(size) * (40 if number % 17 == 16 else 1))
    assert is_close(fit.line(), TRUE)


def test_a_first_call_does_not_count_where_nothing_else_is_known():
    fit = taught([])
    fit.observe(1, 3.0)
    fit.observe(1, TRUE.seconds(1))
    assert fit.line().seconds(1) == pytest.approx(TRUE.seconds(1))


@pytest.mark.parametrize("factor", [4.0, 1.5, 0.2, 0.7])
def test_another_speed_is_followed(factor):
    fit = taught(SIZES)
    now = Line(TRUE.fixed_s * factor, TRUE.per_sample_s * factor)
    for size in SIZES + SIZES:
        fit.observe(size, now.seconds(size))
    assert is_close(fit.line(), now, within=0.1)


def test_passes_of_one_size_leave_the_slope_as_it_was():
    fit, drawn = taught(SIZES), random.Random(1)
    for _ in range(5000):
        fit.observe(4, TRUE.seconds(4) * (1 + 0.2 * drawn.random()))
    assert is_close(fit.line(), Line(TRUE.fixed_s * 1.1, TRUE.per_sample_s * 1.1), within=0.1)
    alone = taught([4] * 1000, noise=0.2, shape=TRUE)
    assert is_close(alone.line(), Line(TRUE.fixed_s * 1.1, TRUE.per_sample_s * 1.1), within=0.1)


def test_without_another_size_each_sample_takes_its_share():
    assert taught([4] * 10).line().seconds(8) == pytest.approx(2 * TRUE.seconds(4))


@pytest.mark.parametrize(
    "pairs", [[(1, 5.0), (2, 4.0)] * 9, [(1, 0.1), (2, 3.0)] * 9], ids=["falls", "starts below zero"]
)
def test_no_part_of_a_line_is_negative(pairs):
    fit = LineFit()
    for size, seconds in pairs:
        fit.observe(size, seconds)
    assert fit.line().fixed_s >= 0
    assert fit.line().per_sample_s >= 0


def test_a_bucket_is_judged_by_the_others_before_it_is_known():
    fits = Fits()
    assert (fits.seconds("a", 1), fits.overall()) == (None, None)
    for size in (1, 16, 1, 16):
        fits.seed(size, TRUE.seconds(size))
    assert fits.seconds("a", 8) == pytest.approx(TRUE.seconds(8), rel=1e-3)
    for _ in range(5):
        fits.observe("long", 4, 10 * TRUE.seconds(4))
    assert fits.seconds("long", 4) == pytest.approx(10 * TRUE.seconds(4))
    assert fits.seconds("long", 16) == pytest.approx(10 * TRUE.seconds(16), rel=0.2), "the slope of the seed"


def test_the_whole_is_weighed_by_the_samples_of_late():
    fits = Fits()
    for _ in range(300):
        fits.observe("before", 1, 1.0)
    for _ in range(300):
        fits.observe("rare", 1, 1.0)
        fits.observe("usual", 9, 0.09)
    found = fits.overall()
    assert found is not None
    assert found.seconds(1) == pytest.approx(0.1 * 1.0 + 0.9 * 0.01, rel=0.05)


def test_buckets_are_bounded():
    fits = Fits(max_buckets=3)
    for bucket in (1, 2, 3, 1, 4):
        fits.observe(bucket, 1, float(bucket))
    assert len(fits) == 3
    assert fits.seconds(1, 1) == pytest.approx(1.0), "used again: 2 went"
    assert fits.seconds(2, 1) not in (None, pytest.approx(2.0))
