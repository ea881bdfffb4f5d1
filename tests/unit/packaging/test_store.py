import pytest

from eagleray.errors import InputError, ModelNotFound
from eagleray.packaging import ModelVersion
from eagleray.packaging.store import no_such_model
from eagleray.specs.model_ref import Ref, check_alias, check_name, pick
from support.cards import lineage


def version(number, *aliases):
    return ModelVersion("digits", number, f"/m/{number}", "d" * 64, aliases, {"a": 1.0}, lineage(), 1.5)


VERSIONS = [version(1, "production", "old"), version(2), version(10, "candidate")]


@pytest.mark.parametrize(
    ("ref", "number"),
    [("digits", 10), ("digits@production", 1), ("digits@candidate", 10), ("digits/versions/2", 2)],
)
def test_what_a_reference_means(ref, number):
    assert pick(Ref.parse(ref), VERSIONS).version == number


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("digits@best", "has no alias 'best'; versions: 1, 2, 10; aliases: candidate, old, production"),
        ("digits/versions/3", "has no version 3; versions: 1, 2, 10"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(ref, said):
    with pytest.raises(ModelNotFound, match=said):
        pick(Ref.parse(ref), VERSIONS)


@pytest.mark.parametrize(
    "ref",
    [
        "", "a#b", "a/b", "..", "../x", "/digits", "x" * 300, "Digits", "digits\n", "digits@", "digits@a/b",
        "digits@3", "digits@v3", "digits@latest", "digits/versions/0", "digits/versions/-1",
        "digits/versions/", "digits/versions/1@a", "digits/versions/1/2",
        "digits/versions/99999999999999", "digits/versions/¹",
    ],
)  # fmt: skip
def test_what_is_no_reference(ref):
    with pytest.raises(InputError) as error:
        Ref.parse(ref)
    assert not isinstance(error.value, ModelNotFound)
    assert len(str(error.value)) < 300


def test_names_and_aliases():
    assert check_name("a.b_c-9") == "a.b_c-9"
    assert check_alias("candidate") == "candidate"


def test_no_such_model():
    assert str(no_such_model("vits", ["digits", "gpt"])) == "no model 'vits'; there are: digits, gpt"
    near = "no model 'digit' (did you mean digits?); there are: digits, gpt"
    assert str(no_such_model("digit", ["digits", "gpt"])) == near
    assert str(no_such_model("digit", [])) == "no model 'digit'; none is published yet"


def test_a_version_in_plain_values():
    assert version(3, "b", "a").to_json() | {"lineage": None} == {
        "name": "digits",
        "version": 3,
        "ref": "digits/versions/3",
        "url": "/m/3",
        "digest": "d" * 64,
        "aliases": ["b", "a"],
        "metrics": {"a": 1.0},
        "lineage": None,
        "created_at": 1.5,
    }
