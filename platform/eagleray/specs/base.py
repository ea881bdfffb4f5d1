"""`Spec`, the frozen base of every file that users write, and `load`, which reads one."""

from __future__ import annotations

import glob
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, LiteralString, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from eagleray.errors import SpecError
from eagleray.specs.scalars import mistaken

Problem = tuple[tuple[int | str, ...], str, Any]
"""Place in the file, sentence, value."""


class Spec(BaseModel):
    """A frozen, typed table of a user's file; unknown keys are errors."""

    # Built at first use: `eagleray check` pays only for the kind of spec that it reads.
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, defer_build=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _has_right_types(cls, table: Any) -> Any:
        """`table` itself. Raises: ValidationError for what pydantic would take for a number."""
        if isinstance(table, Mapping):
            found = [
                ((name, *place), sentence, value)
                for name, field in cls.model_fields.items()
                if name in table
                for place, sentence, value in mistaken(field.annotation, table[name])
            ]
            if found:
                raise located(found, "wrong_type")
        return table

    @classmethod
    def fields_by_kind(cls) -> dict[str, frozenset[str]]:
        """What a table of each `kind` may have; empty where this table has no kinds."""
        kind = cls.model_fields.get("kind")
        return {} if kind is None else dict.fromkeys(get_args(kind.annotation), frozenset(cls.model_fields))


def located(found: Sequence[Problem], kind: LiteralString = "value_error") -> ValidationError:
    """An error with one line per problem, for validators of several fields, or of entries of one."""
    details = [
        InitErrorDetails(type=PydanticCustomError(kind, "{error}", {"error": text}), loc=place, input=value)
        for place, text, value in found
    ]
    return ValidationError.from_exception_data("spec", details)


def _existing(path: str, info: ValidationInfo) -> str:
    """`path`, made absolute against the spec's folder. Raises: ValueError if a local file is missing."""
    if "://" in path:
        return path
    base = (info.context or {}).get("base_dir")
    found = Path(base, path) if base else Path(path)
    if base and not found.exists():
        if not any(character in path for character in "*?["):
            raise ValueError(f"{path!r} does not exist (looked for {found})")
        if next(glob.iglob(path, root_dir=base, recursive=True), None) is None:
            raise ValueError(f"{path!r} matches nothing (looked for {found})")
    return str(found)


ExistingPath = Annotated[str, AfterValidator(_existing)]
"""A local path (relative to the spec's own folder, globs allowed) or an fsspec URL."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
"""Of runs, models, services, searches: a folder's name and a part of a URL as it is."""

_IN_TOML = {
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "input should be a table"),
    **dict.fromkeys(("tuple_type", "list_type"), "input should be a list"),
}
"""By the type of pydantic's problem: what it says in Python's words, in those of the file."""

SpecT = TypeVar("SpecT", bound=Spec)


def load(spec_type: type[SpecT], path: str | Path, overrides: Sequence[str] = ()) -> SpecT:
    """The validated spec in the TOML file `path`, with `overrides` ("a.b=c") laid over it.

    Raises:
        SpecError: the file is missing or not TOML, or a value does not validate; one line per problem,
            each with the file, the dotted path and what to do.
    """
    path = Path(path)
    table = read_table(path)
    apply_overrides(spec_type, table, overrides)
    other = FileSpec.registry.get(str(table.get("kind")))
    if other is not None and not issubclass(other, spec_type):
        wanted = [kind for kind, known in FileSpec.registry.items() if issubclass(known, spec_type)]
        raise SpecError(f"{path}: kind: is a {table['kind']} spec; give a {' or '.join(wanted)} spec here")
    return validate(spec_type, table, name=str(path), base_dir=path.resolve().parent)


def read_table(path: Path) -> dict[str, Any]:
    """The file as nested dictionaries: TOML, or a resolved spec (.json). Raises: SpecError."""
    try:
        text = path.read_text(encoding="utf-8")
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file; give the path of a TOML spec (see examples/)") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: is a directory; give the path of a TOML spec") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 text (byte {error.start}); a spec is a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None
    except json.JSONDecodeError as error:
        raise SpecError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(table, dict):
        raise SpecError(f"{path}: not a spec but a {type(table).__name__}; its top level must be a table")
    return table


def apply_overrides(spec_type: type[Spec], table: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set dotted fields of `table`, a `spec_type`'s, in place from "a.b=c"; c is TOML, or else plain text.

    Those of a `kind` come first, and take the fields out that only the old kind has: one that another
    override gives stays, and is an error where it does not fit.
    """
    fields = [_field_and_value(override) for override in overrides]
    for parts, value, override in sorted(fields, key=lambda field: field[0][-1] != "kind"):
        here = table
        for depth, part in enumerate(parts[:-1], start=1):
            here = here.setdefault(part, {})
            if not isinstance(here, dict):
                raise SpecError(
                    f"--set {override}: {'.'.join(parts[:depth])} is a value, not a table; it has no fields"
                )
        if parts[-1] == "kind":
            _drop_fields_of_other_kind(here, spec_type, parts[:-1], value)
        here[parts[-1]] = value


def _field_and_value(override: str) -> tuple[list[str], Any, str]:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise SpecError(f"--set {override}: expected a.b=value, for instance --set optimizer.lr=0.01")
    try:
        return parts, tomllib.loads(f"value = {text}")["value"], override
    except tomllib.TOMLDecodeError:
        return parts, text.strip(), override


def _drop_fields_of_other_kind(
    table: dict[str, Any], spec_type: type[Spec], tags: Sequence[str], kind: Any
) -> None:
    """Take out of `table`, reached along `tags`, what its kind so far has and `kind` has not."""
    fields: dict[str, frozenset[str]] = {}
    for variant in _tables(spec_type, tags):
        fields |= variant.fields_by_kind()
    old = table.get("kind")
    if isinstance(kind, str) and isinstance(old, str) and {kind, old} <= fields.keys():
        for name in fields[old] - fields[kind]:
            table.pop(name, None)


def validate(
    spec_type: type[SpecT], table: Mapping[str, Any], *, name: str, base_dir: Path | None = None
) -> SpecT:
    """`table` as a spec. Raises: SpecError with one line per problem, prefixed by `name`."""
    try:
        return spec_type.model_validate(table, context={"base_dir": base_dir})
    except ValidationError as error:
        raise in_words(spec_type, table, error, name=name) from None


def in_words(
    spec_type: type[Spec], table: Mapping[str, Any], error: ValidationError, *, name: str
) -> SpecError:
    """What pydantic found wrong with `table`: one line per problem, prefixed by `name`."""
    return SpecError("\n".join(_lines(spec_type, table, error, name)))


def _lines(
    spec_type: type[Spec], table: Mapping[str, Any], error: ValidationError, name: str
) -> Iterator[str]:
    for location, sentence in problems(spec_type, table, error):
        yield f"{name}: {location}: {sentence}" if location else f"{name}: {sentence}"


def problems(
    spec_type: type[Spec], table: Mapping[str, Any], error: ValidationError
) -> Iterator[tuple[str, str]]:
    """The dotted path (empty for the whole) of each problem of `table`, and its sentence."""
    found = error.errors(include_url=False)
    inner = {problem["loc"][:depth] for problem in found for depth in range(len(problem["loc"]))}
    for problem in found:
        if problem["type"] == "too_short" and problem["loc"] in inner:
            continue  # a list whose entries are wrong is not too short as well
        location = _dotted(problem["loc"], table)
        yield location, _sentence(spec_type, problem, location)


def _dotted(location: Sequence[int | str], table: Mapping[str, Any]) -> str:
    """The dotted path of an error, without the tags that pydantic adds for the variants of a union."""
    here: Any = table
    parts: list[str] = []
    for part in location:
        if isinstance(here, Mapping) and part not in here and here.get("kind") == part:
            continue
        parts.append(str(part))
        if isinstance(here, Mapping):
            here = _inside(here, part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            here = None
    return ".".join(parts)


def _inside(table: Mapping[str, Any], key: int | str) -> Any:
    """The value at `key`, which may be a dotted name whose parts are nested tables here."""
    if key in table:
        return table[str(key)]
    here: Any = table
    for part in str(key).split("."):
        here = here.get(part) if isinstance(here, Mapping) else None
    return here


def _sentence(spec_type: type[Spec], problem: Any, location: str) -> str:
    """What was found, and what to do next."""
    kind, context = problem["type"], problem.get("ctx", {})
    tags = [part for part in problem["loc"] if isinstance(part, str)]
    if kind == "extra_forbidden":
        key = location.rpartition(".")[2]
        return f"unknown key {key!r}; {_nearest(key, known_keys(spec_type, tags[:-1]), 'known keys here')}"
    if kind == "missing":
        return "is required and missing"
    if kind == "union_tag_not_found":
        return f"has no `kind`; write one of: {', '.join(sorted(_kinds(spec_type, tags)))}"
    if kind == "union_tag_invalid":
        tag = str(context.get("tag"))
        return f"kind {tag!r} is not known; {_nearest(tag, _kinds(spec_type, tags), 'write one of')}"
    if kind == "value_error":
        return str(context.get("error", problem["msg"]))
    message: str = _IN_TOML.get(kind) or problem["msg"]
    if kind in ("too_short", "too_long"):
        message = message.replace("Tuple", "List")
    found = repr(problem.get("input"))
    return f"{message[0].lower()}{message[1:]} (found {found if len(found) <= 60 else found[:57] + '...'})"


def _nearest(word: str, known: set[str], otherwise: str) -> str:
    import difflib  # 15 ms that a good spec need not wait for

    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"{otherwise}: {', '.join(sorted(known))}"


def known_keys(spec_type: type[Spec], tags: Sequence[str]) -> set[str]:
    """Field names of the table reached from `spec_type` along `tags` (field names and variant kinds)."""
    return set().union(*(candidate.model_fields for candidate in _tables(spec_type, tags)))


def _kinds(spec_type: type[Spec], tags: Sequence[str]) -> set[str]:
    """Every `kind` that the table reached along `tags` may have."""
    fields = (candidate.model_fields.get("kind") for candidate in _tables(spec_type, tags))
    return {kind for field in fields if field is not None for kind in get_args(field.annotation)}


def _tables(spec_type: type[Spec], tags: Sequence[str]) -> list[type[Spec]]:
    """The classes that the table reached from `spec_type` along `tags` may be."""
    candidates: list[type[Spec]] = [spec_type]
    for tag in tags:
        inner: list[type[Spec]] = []
        for candidate in candidates:
            if tag in candidate.model_fields:
                inner += spec_types(candidate.model_fields[tag].annotation)
            elif "kind" in candidate.model_fields and tag in get_args(
                candidate.model_fields["kind"].annotation
            ):
                inner.append(candidate)
        candidates = inner or candidates
    return candidates


def spec_types(annotation: Any) -> list[type[Spec]]:
    """Every Spec class inside a type annotation (through unions, optionals, dictionaries and lists)."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [found for argument in get_args(annotation) for found in spec_types(argument)]


class FileSpec(Spec):
    """A spec that is a whole file; its `kind` says which."""

    registry: ClassVar[dict[str, type[FileSpec]]] = {}
    """Every kind of file, by its `kind`; filled as the classes are defined."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for kind in get_args(cls.model_fields["kind"].annotation):
            FileSpec.registry[kind] = cls


def load_any(path: str | Path, overrides: Sequence[str] = ()) -> FileSpec:
    """The spec in `path`, of whichever kind its top-level `kind` names. Raises: SpecError."""
    path = Path(path)
    table = read_table(path)
    apply_overrides(FileSpec.registry.get(str(table.get("kind")), FileSpec), table, overrides)
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in FileSpec.registry:
        found = "is required and missing" if kind is None else f"{kind!r} is not known"
        raise SpecError(f"{path}: kind: {found}; write one of: {', '.join(sorted(FileSpec.registry))}")
    return validate(FileSpec.registry[kind], table, name=str(path), base_dir=path.resolve().parent)
