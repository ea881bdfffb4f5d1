"""A search's spec: its axes, the train spec of a trial, and what is wrong with it, without a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eagleray.errors import SpecError
from eagleray.specs import TrainSpec, TuneSpec, load, validate
from eagleray.specs.axes import Choice, Grid, LogUniform, Randint, Uniform, draw, enumerated, nested, typical

EXAMPLE = Path(__file__).parents[3] / "examples/tune/digits.toml"

BASE: dict[str, Any] = {
    "kind": "train",
    "name": "t",
    "data": {"kind": "digits"},
    "model": {"kind": "mlp", "hidden": [16]},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "adamw", "lr": 0.01},
    "training": {"epochs": 3},
    "scaling": {"num_workers": 2, "label_selector": {"pool": "train"}},
}


def spec(**changes: Any) -> TuneSpec:
    table = {
        "kind": "tune",
        "name": "t",
        "base": BASE,
        "space": {"optimizer.lr": {"kind": "uniform", "min": 0.1, "max": 0.2}},
        "budget": {"num_trials": 3},
        **changes,
    }
    return validate(TuneSpec, table, name="spec")


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        (Choice(kind="choice", values=("a", [1])), ["a", [1]]),
        (Randint(kind="randint", min=2, max=9, step=3), [2, 5, 8]),
        (Grid(kind="grid", min=1, max=3, num=3), [1, 2, 3]),
        (Grid(kind="grid", min=0.1, max=0.4, num=4), [0.1, 0.2, 0.3, 0.4]),
        (Grid(kind="grid", min=1e-4, max=1e-1, num=4, scale="log"), [1e-4, 1e-3, 1e-2, 1e-1]),
        (Uniform(kind="uniform", min=0, max=1), None),
        (LogUniform(kind="loguniform", min=0.1, max=1), None),
    ],
)
def test_what_an_axis_enumerates(axis: Any, values: list[Any] | None) -> None:
    found = enumerated(axis)
    assert (found if found is None else list(found)) == values


@pytest.mark.parametrize(
    ("axis", "u", "value"),
    [
        (Choice(kind="choice", values=("a", "b")), 0.0, "a"),
        (Choice(kind="choice", values=("a", "b")), 0.999, "b"),
        (Randint(kind="randint", min=1, max=4), 0.5, 3),
        (Uniform(kind="uniform", min=-1, max=1), 0.75, 0.5),
        (LogUniform(kind="loguniform", min=1e-4, max=1e-2), 0.5, 1e-3),
        (Grid(kind="grid", min=8, max=32, num=3, scale="log"), 0.4, 16),
    ],
)
def test_what_an_axis_draws(axis: Any, u: float, value: Any) -> None:
    assert draw(axis, u) == pytest.approx(value)
    assert all(draw(axis, i / 50) is not None for i in range(50))
    assert len(typical(axis)) >= 2


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"a.b": 1, "a": {"c": 2}}, {"a": {"b": 1, "c": 2}}),
        ({"a": {"b.c": 1}, "a.b.d": 2}, {"a": {"b": {"c": 1, "d": 2}}}),
        ({"a.b": {"min": 1, "max": 2}, "a": {"b": {"max": 3}}}, {"a": {"b": {"min": 1, "max": 3}}}),
    ],
)
def test_dotted_keys_and_tables_say_the_same(table: dict[str, Any], expected: dict[str, Any]) -> None:
    assert nested(table) == expected


def test_a_field_named_kind_is_no_axis() -> None:
    choice = {"kind": "choice", "values": ["none", "bf16"]}
    for space in ({"compression": {"kind": choice}}, {"compression.kind": choice}):
        assert list(spec(space=space).space) == ["compression.kind"]


def test_the_train_spec_of_a_trial() -> None:
    search = spec(
        overrides={"training.epochs": 9, "data": {"normalize": "standard"}},
        scaling={"cpus_per_worker": 0.5},
    )
    trial = validate(TrainSpec, search.trial_table({"optimizer.lr": 0.15, "model.hidden": [3]}), name="t")
    assert (trial.optimizer.lr, trial.optimizer.kind, trial.training.epochs) == (0.15, "adamw", 9)
    assert (trial.model.model_dump()["hidden"], trial.data.normalize) == ((3,), "standard")
    assert (trial.scaling.num_workers, trial.scaling.cpus_per_worker) == (1, 0.5)
    assert trial.scaling.label_selector == {}, "the base's scaling is not the trial's"
    assert trial.checkpoint.at_evaluations
    assert trial.compression.rehearse


def test_a_trial_has_no_fields_of_another_compression() -> None:
    kinds = {"kind": "choice", "values": ["topk", "int8"]}
    ratios = {"kind": "loguniform", "min": 0.001, "max": 0.1}
    search = spec(space={"compression": {"kind": kinds, "ratio": ratios}})
    for kind, ratio in (("topk", 0.05), ("int8", 0.01)):
        table = search.trial_table({"compression.kind": kind, "compression.ratio": 0.05})
        trial = validate(TrainSpec, table, name="t")
        assert (trial.compression.kind, trial.compression.ratio) == (kind, ratio)


def test_an_override_of_another_kind_takes_the_place_of_the_table() -> None:
    search = spec(overrides={"model": {"kind": "cnn", "channels": [4]}})
    assert search.trial_table({})["model"] == {"kind": "cnn", "channels": [4]}


def test_a_space_may_choose_among_kinds() -> None:
    search = spec(space={"optimizer.kind": {"kind": "choice", "values": ["sgd", "adamw"]}})
    for kind in ("sgd", "adamw"):
        assert validate(TrainSpec, search.trial_table({"optimizer.kind": kind}), name="t")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mode": None}, True),
        ({"metric": "validation_loss"}, False),
        ({"metric": "validation_loss", "mode": "max"}, True),
    ],
)
def test_the_direction_follows_from_the_metric(changes: dict[str, Any], expected: bool) -> None:
    assert spec(**changes).is_max_better is expected


@pytest.mark.parametrize(
    ("searcher", "num_trials", "expected"),
    [("grid", None, 4), ("grid", 3, 3), ("grid", 9, 4), ("random", 9, 9)],
)
def test_how_many_trials_there_are(searcher: str, num_trials: int | None, expected: int) -> None:
    space = {
        "optimizer.lr": {"kind": "choice", "values": [0.1, 0.2]},
        "seed": {"kind": "randint", "min": 1, "max": 2},
    }
    budget = {} if num_trials is None else {"num_trials": num_trials}
    found = spec(searcher={"kind": searcher}, space=space, budget=budget)
    assert (found.num_trials, found.num_combinations) == (expected, 4)


def test_paths_among_the_overrides_are_relative_to_the_spec(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").touch()
    path = tmp_path / "search.json"
    table = spec().model_dump(mode="json") | {
        "overrides": {"data": {"kind": "table", "paths": ["mine.csv"], "target": "y"}, "code": ["mine.csv"]}
    }
    path.write_text(json.dumps(table))
    found = load(TuneSpec, path).overrides
    assert found["data"] == {"kind": "table", "paths": [str(tmp_path / "mine.csv")], "target": "y"}
    assert found["code"] == [str(tmp_path / "mine.csv")]
    with pytest.raises(SpecError, match=r"overrides\.data\.paths: 'no.csv' does not exist \(looked for"):
        load(TuneSpec, path, ["overrides.data.paths=['no.csv']"])


def choice(*values: Any) -> str:
    return f"{{kind='choice', values={list(values)!r}}}"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (f"space.optimizer.lrr={choice(1)}", "space.optimizer.lrr: unknown key 'lrr'; did you mean 'lr'?"),
        (f"space.optimiser.lr={choice(1)}", "space.optimiser.lr: unknown key 'optimiser'; did you mean"),
        (
            f"space.optimizer.lr={choice(0.1, 'x')}",
            "space.optimizer.lr.values: input should be a valid number",
        ),
        (
            f"space.compression.kind={choice('none', 'bf17')}",
            "space.compression.kind.values: input should be",
        ),
        (
            f"space.optimizer.kind={choice('adamw', 'sdg')}",
            "space.optimizer.kind.values: kind 'sdg' is not known",
        ),
        ("space.optimizer.lr.min=1", "space.optimizer.lr: min (1) exceeds max (0.03); lower one or raise"),
        ("space.seed={kind='randint', min=3, max=2}", "space.seed: min (3) exceeds max (2); lower one"),
        ("space.optimizer.lr.min=-1", "space.optimizer.lr.min: input should be greater than 0 (found -1)"),
        (
            "space.optimizer.lr={min=1, max=2}",
            "space.optimizer.lr: has no `kind`; write one of: choice, grid",
        ),
        ("space.optimizer.lr.kind=loguniformm", "space.optimizer.lr: kind 'loguniformm' is not known; did"),
        ("space.optimizer.lr=3", "space.optimizer.lr: input should be a table"),
        ("space={}", "space: is empty; name a field of the train spec"),
        (
            "space.model.kernel_size={kind='uniform', min=1, max=5}",
            "space.model.kernel_size: input should be a valid integer, got a number with a fractional part",
        ),
        (
            f"space.scaling.num_workers={choice(1)}",
            "space.scaling.num_workers: all trials have this in common",
        ),
        ("budget.num_trials=0", "budget.num_trials: input should be greater than or equal to 1 (found 0)"),
        ("budget.time_s=0", "budget.time_s: input should be greater than 0 (found 0)"),
        ("budget={}", "budget.num_trials: is required with searcher 'tpe'"),
        ("searcher.kind=grid", "space.optimizer.lr: 'loguniform' has no end of values, which a grid cannot"),
        ("overrides.training.epochz=3", "overrides.training.epochz: unknown key 'epochz'; did you mean"),
        ("overrides.training=3", "overrides.training: input should be a table"),
        ("metric=accuracy", "metric: input should be 'validation_accuracy' or 'validation_loss'"),
        (
            "overrides.data.split={train=1.0, validation=0.0, test=0.0}",
            "metric: validation_accuracy needs data.split.validation above 0 in the base",
        ),
        ("base=nowhere.toml", "base: /"),
        ("base=../../local.toml", "base: /"),
        ("base={}", "base.kind: is required and missing"),
    ],
)
def test_a_search_that_does_not_fit(override: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(TuneSpec, EXAMPLE, [override])
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{EXAMPLE}: {expected}")
    assert all(line.startswith(f"{EXAMPLE}: ") for line in lines)


def test_values_that_exclude_each_other_are_no_error_of_the_spec() -> None:
    base = BASE | {
        "data": {"kind": "stdlib_text"},
        "model": {"kind": "gpt", "width": 8, "num_heads": 2},
        "loss": {"kind": "next_token"},
    }
    space = {
        "model.width": {"kind": "choice", "values": [8, 9]},
        "model.num_heads": {"kind": "choice", "values": [2, 3]},
    }
    assert spec(base=base, space=space).num_combinations == 4
