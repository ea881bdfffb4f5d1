"""A token loss and a model that cannot learn from it are refused before anything starts."""

from __future__ import annotations

import pytest

from eagleray import specs
from eagleray.errors import SpecError


def spec_with(loss: str, *, others: dict[str, object] | None = None, **model: object) -> specs.TrainSpec:
    table = {
        "kind": "train",
        "name": "t",
        "data": {"kind": "stdlib_text"},
        "model": model,
        "loss": {"kind": loss},
        "optimizer": {"kind": "sgd", "lr": 0.1},
        "training": {"steps": 1},
        **(others or {}),
    }
    return specs.validate(specs.TrainSpec, table, name="t.toml")


@pytest.mark.parametrize("model", [{"kind": "transformer"}, {"kind": "gru", "bidirectional": True}])
def test_a_model_that_sees_the_next_token_does_not_train_to_guess_it(model: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="cannot look ahead; use gpt"):
        spec_with("next_token", **model)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "gpt"])
def test_a_model_without_both_sides_fills_in_no_masks(kind: str) -> None:
    with pytest.raises(SpecError, match="use transformer"):
        spec_with("masked_token", kind=kind)


@pytest.mark.parametrize(
    ("loss", "kind"), [("next_token", "gpt"), ("next_token", "gru"), ("masked_token", "gru")]
)
def test_the_others_are_taken(loss: str, kind: str) -> None:
    assert spec_with(loss, kind=kind).model.kind == kind


@pytest.mark.parametrize("vocabulary_size", [17, 256])
def test_tokens_that_stand_for_no_text_complete_none(vocabulary_size: int) -> None:
    data = {"kind": "table", "paths": ["x.parquet"], "features": ["ids"]}
    tokens = {**data, "input_kind": "tokens", "vocabulary_size": vocabulary_size}
    completion = {"prompt": "def"}
    spec_with("next_token", kind="gpt", others={"data": tokens})
    spec_with(
        "next_token", kind="gpt", others={"data": {**data, "input_kind": "text"}, "completion": completion}
    )
    with pytest.raises(SpecError) as caught:
        spec_with("next_token", kind="gpt", others={"data": tokens, "completion": completion})
    assert str(caught.value) == (
        "t.toml: completion: completes text, and data.input_kind 'tokens' names no text for its tokens; "
        'use input_kind = "text", or take [completion] out'
    )
