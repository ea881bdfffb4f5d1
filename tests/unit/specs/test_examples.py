"""Every spec in the repository loads, and carries the line that gives editors its schema."""

from __future__ import annotations

import json
import tomllib
from functools import cache
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from eagleray import specs
from eagleray.specs import reference

ROOT = Path(__file__).parents[3]
FILES = [*sorted(ROOT.glob("examples/**/*.toml")), ROOT / "local.toml"]


@cache
def validator(kind: str) -> Draft202012Validator:
    """Of a kind's schema, which is one itself."""
    schema = reference.schema(specs.FileSpec.registry[kind])
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return reference.files()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_loads_and_fits_its_schema(path: Path) -> None:
    spec = specs.load_any(path)
    kind = spec.model_dump()["kind"]
    validator(kind).validate(tomllib.loads(path.read_text()))
    first_line = path.read_text().splitlines()[0]
    assert first_line.startswith("#:schema ")
    assert (
        path.parent / first_line.removeprefix("#:schema ")
    ).resolve() == ROOT / f"docs/schemas/{kind}.json"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_resolved_spec_loads_again_as_it_is(path: Path, tmp_path: Path) -> None:
    spec = specs.load_any(path)
    resolved = tmp_path / "spec.json"
    resolved.write_text(spec.model_dump_json())
    assert specs.load_any(resolved) == spec


def test_the_generated_files_are_up_to_date(generated: dict[str, str]) -> None:
    stale = [
        name for name, text in generated.items() if (ROOT / "docs" / name).read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run `make docs`"


def test_headings_name_kinds_where_they_tell_tables_apart(generated: dict[str, str]) -> None:
    headings = [line for line in generated["specs.md"].splitlines() if line.startswith("#")]
    assert "### `[compression]`" in headings, "it takes kinds of one's own, too"
    assert "### `[optimizer]` with kind `adam` | `adamw`" in headings
    assert not [line for line in headings if "typing." in line]


def test_every_key_of_the_reference_has_a_type(generated: dict[str, str]) -> None:
    rows = [line for line in generated["specs.md"].splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert [row for row in rows if row.split(" | ")[1].strip() in ("", "any value")] == []


def test_the_meaning_below_a_field_reaches_the_schema(generated: dict[str, str]) -> None:
    schema = json.loads(generated["schemas/train.json"])
    assert schema["properties"]["name"]["description"].startswith("Lower-case letters")
    assert "micro-batches" in schema["$defs"]["TrainingSpec"]["properties"]["accumulate"]["description"]
