"""Which version answers which name."""

from __future__ import annotations

import json
import re

import pytest

from eagleray.serving.routes import ModelRoute, Routes, UnknownModel
from eagleray.serving.state import IngressState
from support.serving import pretend, routes


@pytest.mark.parametrize(
    ("model", "version", "expected"),
    [
        ("digits", None, 2),
        ("digits", "3", 3),
        ("digits@candidate", None, 3),
        ("digits/versions/2", None, 2),
        ("iris", None, 1),
    ],
)
def test_a_name_finds_its_version(model: str, version: str | None, expected: int) -> None:
    found = routes().resolve(model, version)
    assert (found.name, found.version) == (re.split("[@/]", model)[0], expected)


@pytest.mark.parametrize(
    ("model", "version", "message"),
    [
        ("digit", None, "no model 'digit' is deployed; deployed: digits, gpt, iris, reviews, tones"),
        ("digits", "4", "model 'digits' has no deployed version '4'; deployed: 2, 3"),
        ("digits", "x", "has no deployed version 'x'; deployed: 2, 3"),
        ("digits", "9" * 5000, "has no deployed version '9999"),
        ("digits", "02", "has no deployed version '02'"),
        ("digits@prod", None, "model 'digits' has no alias 'prod'; it has: candidate"),
        ("digits@candidate", "3", "names a version twice (also '3')"),
        ("digits/versions/", None, "not a name; expected NAME, NAME@ALIAS or NAME/versions/NUMBER"),
        ("digits/versions/0", None, "not a name"),
        ("..", None, "model '..': not a name"),
        ("a#b", None, "model 'a#b': not a name"),
        ("a/b", None, "not a name"),
        ("", None, "not a name"),
        ("Digits", None, "not a name"),
        ("x" * 300, None, "model 'xxx"),
    ],
)
def test_a_name_that_leads_nowhere(model: str, version: str | None, message: str) -> None:
    with pytest.raises(UnknownModel, match=re.escape(message)) as caught:
        routes().resolve(model, version)
    assert len(str(caught.value)) < 200


def test_nothing_is_deployed() -> None:
    with pytest.raises(UnknownModel, match="no model 'digits' is deployed; deployed: none"):
        Routes().resolve("digits")


def test_many_models_are_not_all_listed() -> None:
    many = Routes(1, {f"m{index}": ModelRoute(1) for index in range(50)})
    with pytest.raises(UnknownModel, match=r"m26, … \(50 in all\)"):
        many.resolve("digits")


def test_json_keeps_everything() -> None:
    state = pretend().app.state
    assert IngressState.from_json(json.loads(json.dumps(state.to_json()))) == state
