"""The specs reference (Markdown) and the JSON schemas for editors, made from the models: `make docs`."""

from __future__ import annotations

import ast
import inspect
import json
import sys
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from eagleray.specs.base import FileSpec, Spec, spec_types

INTRODUCTION = """\
# Specs

Every run, cluster, service and search is one TOML file. `eagleray check SPEC` validates one without a
cluster; `--set a.b=c` changes one value of it, and with a `kind` the fields that only the other kind has go.
Unknown keys are errors. Paths are relative to the spec's own folder. The JSON schemas beside this page
(`docs/schemas/`) give editors completion: each example starts with a `#:schema` line.

This page is generated from `platform/eagleray/specs/` by `make docs`.
"""
CONSTRAINTS = {
    "ge": ">= ",
    "gt": "> ",
    "le": "<= ",
    "lt": "< ",
    "min_length": "length >= ",
    "pattern": "matches ",
}


def files() -> dict[str, str]:
    """Every generated file: its path below docs/ -> its text."""
    made = {"specs.md": "\n".join(_page())}
    for kind, spec_type in sorted(FileSpec.registry.items()):
        made[f"schemas/{kind}.json"] = json.dumps(schema(spec_type), indent=2) + "\n"
    return made


def write(folder: Path) -> list[Path]:
    """Write every generated file below `folder`; returns those that changed."""
    changed = []
    for name, text in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


def schema(spec_type: type[FileSpec]) -> dict[str, Any]:
    """The JSON schema of one kind of file, each key with its meaning."""
    made = spec_type.model_json_schema()
    described = {table.__name__: descriptions(table) for table in tables(spec_type)}
    for name, definition in [(spec_type.__name__, made), *made.get("$defs", {}).items()]:
        for key, text in described.get(name, {}).items():
            definition["properties"][key].setdefault("description", text)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def tables(spec_type: type[Spec]) -> list[type[Spec]]:
    """`spec_type` and every table inside it, each once, in the order of the fields."""
    found = [spec_type]
    for table in found:
        for field in table.model_fields.values():
            found += [inner for inner in spec_types(field.annotation) if inner not in found]
    return found


@cache
def descriptions(spec_type: type[Spec]) -> dict[str, str]:
    """The string below each field, in the class and its bases.

    Read from the source here, and not by pydantic's `use_attribute_docstrings`: that parses the source of
    every class at import, which costs the command line 80 ms.
    """
    found: dict[str, str] = {}
    for base in reversed(spec_type.__mro__):
        if not (issubclass(base, Spec) and base is not Spec):
            continue
        body = ast.parse(inspect.getsource(base)).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = inspect.cleandoc(text)
    return {name: text for name, text in found.items() if name in spec_type.model_fields}


def _page() -> Iterator[str]:
    yield INTRODUCTION
    for kind, spec_type in sorted(FileSpec.registry.items()):
        yield f'## `kind = "{kind}"`\n'
        yield f"{inspect.getdoc(spec_type)}\n"
        yield from _table(spec_type)
        for (path, table), kinds in _sections(spec_type).items():
            named = f" with kind {' | '.join(f'`{kind}`' for kind in kinds)}" if kinds else ""
            yield f"### `[{path}]`{named}\n"
            yield f"{inspect.getdoc(table)}\n"
            yield from _table(table)


def _sections(spec_type: type[Spec], above: str = "") -> dict[tuple[str, type[Spec]], tuple[str, ...]]:
    """Each place inside `spec_type` and a table that may stand there (once) -> the kinds of that table."""
    found: dict[tuple[str, type[Spec]], tuple[str, ...]] = {}
    for name, field in spec_type.model_fields.items():
        place = above + name + (".NAME" if get_origin(field.annotation) is dict else "")
        for table in spec_types(field.annotation):
            if issubclass(table, FileSpec):
                continue  # a whole file inside another has a chapter of its own
            kind = table.model_fields.get("kind")
            found.setdefault((place, table), _choices(kind.annotation) if kind is not None else ())
            found |= _sections(table, f"{place}.")
    return found


def _choices(annotation: Any) -> tuple[str, ...]:
    """The values that an annotation lists; none where it takes others, too."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _choices(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        halves = [_choices(half) for half in get_args(annotation)]
        return sum(halves, ()) if all(halves) else ()
    return ()


def _table(spec_type: type[Spec]) -> Iterator[str]:
    meaning = descriptions(spec_type)
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in spec_type.model_fields.items():
        cells = [f"`{name}`", _type(field), _default(field), " ".join(meaning.get(name, "").split())]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _type(field: FieldInfo) -> str:
    limits = [
        f"{word}`{getattr(item, name)}`"
        for item in field.metadata
        for name, word in CONSTRAINTS.items()
        if getattr(item, name, None) is not None
    ]
    return ", ".join([_type_name(field.annotation), *limits])


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _type_name(arguments[0])
    if origin is Literal:
        return " | ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        names = [_type_name(argument) for argument in arguments if argument is not type(None)]
        return " | ".join(dict.fromkeys(names))
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}" if arguments else "list"
    if origin is dict:
        return f"table of {_type_name(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, FileSpec):
        return "path | table"
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return "table"
    return {str: "text", int: "whole number", float: "number", bool: "true | false"}.get(
        annotation, "any value"
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "-"
    if isinstance(value, Spec):
        changed = value.model_dump(exclude_defaults=True)
        return f'`kind = "{changed["kind"]}"`' if "kind" in changed else "each key's own"
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    for changed_path in write(Path(sys.argv[1])):
        print(f"wrote {changed_path}")
