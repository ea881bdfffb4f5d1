"""What people see of a search: lines of text, from the trials alone."""

from __future__ import annotations

from typing import Any

from eagleray.specs import TuneSpec, validate
from eagleray.tuning import Trial
from eagleray.tuning.record import State
from eagleray.workflows.search_table import MAX_ROWS, closing, columns, headline, live, sharing

SPEC = validate(
    TuneSpec,
    {
        "kind": "tune",
        "name": "t",
        "base": {
            "kind": "train",
            "name": "t",
            "data": {"kind": "digits"},
            "model": {"kind": "mlp"},
            "loss": {"kind": "cross_entropy"},
            "optimizer": {"kind": "adamw", "lr": 0.01},
            "training": {"epochs": 3},
        },
        "space": {
            "optimizer.lr": {"kind": "uniform", "min": 0.1, "max": 0.2},
            "model.hidden": {"kind": "choice", "values": [[8], [8, 16]]},
        },
        "budget": {"num_trials": 40},
    },
    name="spec",
)


def trial(number: int, state: State, value: float | None = None, **fields: Any) -> Trial:
    evaluations = [] if value is None else [{"step": 20, "validation_accuracy": value}]
    values = {"optimizer.lr": 0.1 + number / 7, "model.hidden": [8, 16][:number]}
    return Trial(number, values, f"t-{number:03d}", state, evaluations=evaluations, **fields)


TRIALS = [
    trial(1, "finished", 0.9, step=60, total_steps=60, nodes=["w1"], seconds=3.21),
    trial(2, "running", 0.95, step=40, total_steps=60, nodes=["w1"]),
    trial(3, "failed", step=10, total_steps=60, nodes=["w2"], error="the loss is not finite", seconds=1),
    trial(4, "waiting"),
    trial(5, "running", nodes=["w2"]),
]


def test_one_block_of_the_live_table() -> None:
    assert live(SPEC, TRIALS, 75) == [
        "1:15  trial 5 of 40: 2 running, 1 waiting, 1 finished, 1 failed; best so far 0.9500 (trial 2)",
        "  trial  state     optimizer.lr  model.hidden   step  validation_accuracy  node",
        "      1  finished        0.2429  [8]           60/60               0.9000  w1",
        "      2  running         0.3857  [8,16]        40/60               0.9500  w1",
        "      3  failed          0.5286  [8,16]        10/60                    -  w2",
        "      4  waiting         0.6714  [8,16]            -                    -  -",
        "      5  running         0.8143  [8,16]            -                    -  w2",
        "  nodes: w1: 2   w2: 5",
    ]


def test_of_many_trials_those_that_run_are_shown() -> None:
    many = [trial(number, "running" if number == 39 else "stopped", 0.5) for number in range(1, 41)]
    lines = live(SPEC, many, 1)
    assert any(line.split()[:2] == ["39", "running"] for line in lines)
    assert lines[-1] == f"  and {40 - MAX_ROWS} more"


def test_the_closing_table_has_the_best_first_and_says_why_trials_failed() -> None:
    lines = closing(SPEC, TRIALS)
    assert [line.split()[0] for line in lines[1:-1]] == ["2", "1", "3", "5"]
    assert lines[2].endswith("3.2 s")
    assert lines[-1] == ("  trial 3 failed (optimizer.lr=0.5286 model.hidden=[8,16]): the loss is not finite")


def test_before_the_first_trial() -> None:
    assert headline(SPEC, [], 0) == "0:00  trial 0 of 40: "
    assert sharing([]) == ""
    assert columns([["a", "bb"]]) == ["  a  bb"]
