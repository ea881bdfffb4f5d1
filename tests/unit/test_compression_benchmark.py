"""The arithmetic of benchmarks/compression: formula bytes, floors, bounds, budgets."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from support.benchmarks import module_of

arithmetic, tasks = (module_of("compression", name) for name in ("arithmetic", "tasks"))
WIDTHS = (784, 2048, 2048, 2048, 100)
SHAPES = [shape for a, b in itertools.pairwise(WIDTHS) for shape in ((b, a), (b,))]
NUMEL = sum(map(math.prod, SHAPES))


@pytest.mark.parametrize(
    ("kind", "n", "ratio"),
    [
        ("dense", 4, 1.0),
        ("fp16", 4, 2.0),
        ("int8", 4, 3.97),
        ("int4", 4, 7.8),
        ("topk", 4, 50.0),
        ("topk", 2, 100.0),
        ("randomk", 4, 200.0),
        ("onebit_adam", 4, 30.0),
        ("torch_allgather8", 2, 4.0),
        ("torch_allgather8", 8, 1.0),
    ],
)
def test_formulas_give_the_ratios_of_the_research(kind, n, ratio):
    dense = arithmetic.formula_bytes("dense", [(1000, 10_000)], n)
    assert dense == pytest.approx(2 * (n - 1) / n * 4e7, rel=0.003)
    assert dense / arithmetic.formula_bytes(kind, [(1000, 10_000)], n) == pytest.approx(ratio, rel=0.01)


def test_small_parameters_and_vectors_travel_in_float32():
    small = [(100,), (10, 10)]
    assert arithmetic.formula_bytes("int4", small, 3) == arithmetic.formula_bytes("dense", small, 3)


def test_the_model_of_the_benchmark_is_the_research_s():
    assert pytest.approx(10.2e6, rel=0.001) == NUMEL
    assert arithmetic.formula_bytes("dense", SHAPES, 4) == pytest.approx(61.3e6, rel=0.003)
    assert arithmetic.formula_bytes("powersgd", SHAPES, 4) < 0.45e6
    assert arithmetic.formula_bytes("topk", SHAPES, 4) < 1.28e6


def test_an_unknown_scheme_has_no_formula():
    assert math.isnan(arithmetic.formula_bytes("?", SHAPES, 4))


def test_the_floor_is_the_line_or_the_computing():
    assert arithmetic.floor_s(0.1, 61.3e6, 100.0) == pytest.approx(4.904)
    assert arithmetic.floor_s(0.1, 1e6, 1000.0) == 0.1
    assert arithmetic.floor_s(0.1, 61.3e6, None) == 0.1


def test_the_upper_bound_covers_the_true_median_about_as_often_as_it_says():
    generator = random.Random(3)
    covered = sum(
        arithmetic.upper_bound([generator.gauss(1.0, 0.1) for _ in range(15)], resamples=500) >= 1.0
        for _ in range(200)
    )
    assert 175 <= covered <= 199


def test_the_upper_bound_of_equal_ratios_is_their_value():
    assert arithmetic.upper_bound([0.5] * 7) == 0.5


def test_the_paired_interval_is_students():
    mean, low, high = arithmetic.paired_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert high - mean == pytest.approx(2.776 * math.sqrt(2.5 / 5), rel=1e-3)
    assert mean - low == pytest.approx(high - mean)
    assert math.isnan(arithmetic.paired_interval([1.0])[1])


@pytest.mark.parametrize(("step_s", "count"), [(5.4, 1), (0.3, 2), (0.1, 6), (1e-9, 50)])
def test_a_block_is_of_fixed_time_and_has_a_step_at_least(step_s, count):
    assert arithmetic.steps_of_block(step_s, 0.6) == count


def test_drawn_rates_follow_from_the_seed_and_spread_over_the_range():
    rates = arithmetic.draw_rates(2000, seed=1)
    assert rates == arithmetic.draw_rates(2000, seed=1) != arithmetic.draw_rates(2000, seed=2)
    assert min(rates) >= 50
    assert max(rates) <= 10_000
    assert sorted(rates)[1000] == pytest.approx(math.sqrt(50 * 10_000), rel=0.15)


def test_a_part_that_took_too_long_shortens_the_rest():
    budget = arithmetic.Budget(100, [1, 2, 1])
    assert budget.next_s() == 25
    budget.spent(40)
    assert budget.next_s() == 40
    budget.spent(70)
    assert budget.next_s() == 0


def test_weights_are_compared_by_their_bytes_and_not_finite_ones_are_told():
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    assert tasks.weights(first) == tasks.weights(second)
    assert tasks.weights(first)["is_finite"]
    with torch.no_grad():
        second.bias[0], second.bias[1] = first.bias[1], first.bias[0]
        assert tasks.weights(first)["digest"] != tasks.weights(second)["digest"], "their sum is the same"
        for one in (first, second):
            one.weight[0, 0], one.bias[0], one.bias[1] = torch.nan, 0.0, 1.0
    assert tasks.weights(first) == tasks.weights(second), "NaN is as good as any other"
    assert not tasks.weights(first)["is_finite"]
