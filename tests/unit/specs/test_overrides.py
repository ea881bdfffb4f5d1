"""`--set a.b=c`: one value of a spec, and with a `kind` the fields that only the other kind has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eagleray.errors import SpecError
from eagleray.specs import FileSpec, TrainSpec, TuneSpec, apply_overrides, load, load_any

EXAMPLES = Path(__file__).parents[3] / "examples"
TUNE, TRAIN = EXAMPLES / "tune/digits.toml", EXAMPLES / "train/digits.toml"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=0.5", {"a": {"b": 0.5}}),
        ("a=plain text", {"a": "plain text"}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ('a="1"', {"a": "1"}),
        ("a=true", {"a": True}),
        ("a=x=y", {"a": "x=y"}),
        ("a.kind=x", {"a": {"kind": "x"}}),
    ],
)
def test_set_takes_toml_or_else_text(override: str, expected: dict[str, Any]) -> None:
    table: dict[str, Any] = {}
    apply_overrides(FileSpec, table, [override])
    assert table == expected


def test_another_scheduler_has_none_of_the_first_ones_fields() -> None:
    assert load_any(TUNE, ["scheduler.kind=none"]).scheduler.kind == "none"  # type: ignore[attr-defined]


def test_fields_that_both_kinds_have_stay() -> None:
    found = load(TuneSpec, TUNE, ["scheduler.kind=median"]).scheduler.model_dump()
    assert found == {"kind": "median", "grace_evaluations": 3, "min_trials": 3}


def test_another_searcher() -> None:
    found = load(TuneSpec, TUNE, ["searcher.num_random=2"]).searcher
    assert found.model_dump() == {"kind": "tpe", "num_random": 2}
    assert load(TuneSpec, TUNE, ["searcher.kind=random"]).searcher.model_dump() == {"kind": "random"}


def test_another_axis() -> None:
    overrides = ["space.optimizer.lr.values=[0.1, 0.2]", "space.optimizer.lr.kind=choice"]
    axis = load(TuneSpec, TUNE, overrides).space["optimizer.lr"]
    assert axis.model_dump() == {"kind": "choice", "values": (0.1, 0.2)}


def test_another_model_optimizer_and_schedule() -> None:
    overrides = ["model.kind=mlp", "model.hidden=[8]", "optimizer.kind=sgd", "schedule.kind=constant"]
    first, second = load(TrainSpec, TRAIN), load(TrainSpec, TRAIN, overrides)
    assert (second.model.kind, second.optimizer.kind) == ("mlp", "sgd")
    assert second.optimizer.lr == first.optimizer.lr
    assert second.schedule.warmup_steps == first.schedule.warmup_steps


def test_another_compression_has_none_of_the_first_ones_fields(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    kept = 'kind = "topk"\nratio = 0.2\nwarmup_steps = 7'
    path.write_text(TRAIN.read_text().replace('kind = "bf16"', kept))
    found = load(TrainSpec, path, ["compression.kind=powersgd"]).compression
    assert (found.kind, found.ratio, found.warmup_steps) == ("powersgd", 0.01, 7)
    with pytest.raises(SpecError, match=r"compression\.ratio: only topk, randomk and auto use it"):
        load(TrainSpec, path, ["compression.kind=powersgd", "compression.ratio=0.1"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["scheduler.grace_evaluations=2", "scheduler.kind=none"],
        ["scheduler.kind=none", "scheduler.grace_evaluations=2"],
    ],
)
def test_a_field_of_the_other_kind_that_is_set_too_is_an_error(overrides: list[str]) -> None:
    with pytest.raises(SpecError, match=r"scheduler\.grace_evaluations: unknown key"):
        load(TuneSpec, TUNE, overrides)


def test_a_key_that_no_kind_has_is_still_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tune.toml"
    text = TUNE.read_text().replace("grace_evaluations = 3", "grace = 3")
    path.write_text(text.replace("../train/digits.toml", str(TRAIN)))
    with pytest.raises(SpecError, match=r"scheduler\.grace: unknown key"):
        load(TuneSpec, path, ["scheduler.kind=none"])


def test_a_kind_that_is_not_known_is_the_one_error() -> None:
    with pytest.raises(SpecError) as caught:
        load(TuneSpec, TUNE, ["scheduler.kind=asah"])
    assert str(caught.value) == f"{TUNE}: scheduler: kind 'asah' is not known; did you mean 'asha'?"
