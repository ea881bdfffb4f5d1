"""The picture of a search."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from eagleray.evaluation.searches import TrialCurve, plot_search

MANY = [
    TrialCurve(1, "finished", [(10, 0.5), (20, 0.9)]),
    TrialCurve(2, "stopped", [(10, 0.4)]),
    TrialCurve(3, "failed", [(10, math.nan)]),
    TrialCurve(4, "interrupted", []),
    *(TrialCurve(number, "stopped", [(10, 0.1), (20, number / 100)]) for number in range(5, 40)),
]


@pytest.mark.parametrize(
    ("trials", "best", "winner"),
    [([], [], None), (MANY[:1], [(1, 0.9)], 1), (MANY[:4], [(1, 0.9), (2, 0.9)], 1), (MANY, [(1, 0.9)], 1)],
    ids=["none", "one", "each kind", "many"],
)
def test_a_picture_whatever_the_trials_came_to(
    tmp_path: Path, trials: list[TrialCurve], best: list[tuple[int, float]], winner: int | None
) -> None:
    path = tmp_path / "history.png"
    plot_search(trials, best, path, title="t", metric="validation_accuracy", winner=winner)
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    assert (int.from_bytes(header[16:20]), int.from_bytes(header[20:24])) == (1200, 1080)


def test_a_curve_is_worth_its_last_finite_value() -> None:
    assert TrialCurve(1, "running", [(1, 0.5), (2, 0.6), (3, math.inf)]).value == 0.6
    assert TrialCurve(1, "running", [(1, math.nan)]).value is None
