"""Which trial is the best, and what a later driver knows of one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from eagleray.packaging import Folder
from eagleray.tuning import Trial, best_of, winner_of
from eagleray.tuning.record import State, best_so_far, read_evaluations

METRIC = "validation_accuracy"


def trial(number: int, state: State, *values: float, step: int = 10) -> Trial:
    evaluations = [{"step": index + 1.0, METRIC: value} for index, value in enumerate(values)]
    return Trial(number, {"optimizer.lr": 0.1}, f"t-{number}", state, step, evaluations=evaluations)


@pytest.mark.parametrize(
    ("trials", "best"),
    [
        ([], None),
        ([trial(1, "waiting")], None),
        ([trial(1, "finished", 0.5), trial(2, "finished", 0.9), trial(3, "failed", 0.99)], 2),
        ([trial(1, "finished", 0.9), trial(2, "finished", 0.9)], 1),
        ([trial(1, "stopped", 0.9, step=5), trial(2, "stopped", 0.9, step=9)], 2),
        ([trial(1, "finished", 0.99, 0.5), trial(2, "finished", 0.6)], 2),  # the newest value counts
        ([trial(1, "finished", math.nan), trial(2, "finished", 0.1)], 2),
    ],
)
def test_the_best(trials: list[Trial], best: int | None) -> None:
    found = best_of(trials, METRIC, is_max_better=True)
    assert (None if found is None else found.number) == best


def test_the_lowest_loss_is_the_best() -> None:
    found = best_of([trial(1, "finished", 0.5), trial(2, "running", 0.3)], METRIC, is_max_better=False)
    assert found is not None
    assert found.number == 2


def test_a_winner_has_trained_to_its_end_if_any_has() -> None:
    ended_early = trial(1, "stopped", 0.99)
    winner = winner_of([ended_early, trial(2, "finished", 0.9)], METRIC, is_max_better=True)
    assert winner is not None
    assert winner.number == 2
    assert winner_of([ended_early, trial(2, "failed", 0.9)], METRIC, is_max_better=True) is ended_early


def test_best_so_far_leaves_out_what_failed() -> None:
    trials = [
        trial(3, "finished", 0.7),
        trial(1, "finished", 0.5),
        trial(2, "failed", 0.9),
        trial(4, "stopped"),
    ]
    assert best_so_far(trials, METRIC, is_max_better=True) == [(1, 0.5), (3, 0.7)]
    assert best_so_far(trials, METRIC, is_max_better=False) == [(1, 0.5), (3, 0.5)]


def test_an_evaluation_again_after_a_restart_takes_the_place_of_the_old_ones() -> None:
    found = trial(1, "running", 0.5, 0.6, 0.7)
    found.evaluated({"step": 2, METRIC: 0.65})
    assert [one[METRIC] for one in found.evaluations] == [0.5, 0.65]


def test_a_record_comes_back_as_it_was() -> None:
    found = trial(1, "stopped", 0.5)
    assert Trial.from_json(found.to_json()) == found


def test_evaluations_of_a_run_that_has_not_begun_or_whose_file_is_damaged(tmp_path: Path) -> None:
    assert read_evaluations(Folder(tmp_path)) == []
    (tmp_path / "evaluations.json").write_text('[{"step": 1')
    assert read_evaluations(Folder(tmp_path)) == []
