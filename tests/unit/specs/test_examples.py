"""Every spec in the repository loads, and carries the line that gives editors its schema."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from eagleray import specs
from eagleray.specs import reference

ROOT = Path(__file__).parents[3]
FILES = [*sorted(ROOT.glob("examples/**/*.toml")), ROOT / "local.toml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_loads_and_fits_its_schema(path: Path) -> None:
    spec = specs.load_any(path)
    kind = spec.model_dump()["kind"]
    jsonschema.validate(tomllib.loads(path.read_text()), reference.schema(specs.FileSpec.registry[kind]))
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


def test_the_generated_files_are_up_to_date() -> None:
    stale = [
        name
        for name, text in reference.files().items()
        if (ROOT / "docs" / name).read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run `make docs`"


def test_headings_name_kinds_where_they_tell_tables_apart():
    headings = [line for line in reference.files()["specs.md"].splitlines() if line.startswith("#")]
    assert "### `[compression]`" in headings, "it takes kinds of one's own, too"
    assert "### `[optimizer]` with kind `adam` | `adamw`" in headings
    assert not [line for line in headings if "typing." in line]


def test_every_key_of_the_reference_has_a_type() -> None:
    rows = [line for line in reference.files()["specs.md"].splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert [row for row in rows if row.split(" | ")[1].strip() in ("", "any value")] == []


def test_the_meaning_below_a_field_reaches_the_schema() -> None:
    schema = json.loads(reference.files()["schemas/train.json"])
    assert schema["properties"]["name"]["description"].startswith("Lower-case letters")
    assert "micro-batches" in schema["$defs"]["TrainingSpec"]["properties"]["accumulate"]["description"]
