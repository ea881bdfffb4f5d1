"""Which columns a spec reads from the files, checked against what the files have."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from eagleray.data.readers import Reader, Role, is_number, shown
from eagleray.errors import DataError
from eagleray.specs.data import TableData

_INPUT_ROLES: dict[str, Role] = {
    "tabular": "number",
    "image": "numbers",
    "audio": "numbers",
    "text": "text",
    "tokens": "tokens",
}
_EMPTY = "nothing but nulls"
_MOSTLY = 0.9
"""A CSV column of text with so many numbers in it was meant to be one of numbers."""
_WANTED: dict[Role, tuple[str, ...]] = {
    "number": ("number",),
    "numbers": ("list of numbers",),
    "tokens": ("list of numbers",),
    "text": ("text",),
    "label": ("number", "text"),
}


def features(readers: Sequence[Reader], spec: TableData) -> tuple[str, ...]:
    """The input columns: the spec's, or every numeric column of the first file but the target."""
    if spec.features:
        return spec.features
    schema = readers[0].schema
    found = [field.name for field in schema if kind_of(field.type) == "number" and field.name != spec.target]
    if not found:
        have = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(
            f"{readers[0].source.name}: no numeric column besides the target; it has {have}; "
            "name columns in data.features, or another data.input_kind"
        )
    for field in schema:
        if readers[0].source.format == "csv" and kind_of(field.type) == "text" and field.name != spec.target:
            _check_is_text(readers[0], field.name)
    return tuple(found)


def _check_is_text(reader: Reader, name: str) -> None:
    """Raises: DataError if a column of text looks like one of numbers with something else among them."""
    if reader.schema.names.count(name) > 1:
        return  # such a column cannot be read by its name
    column = reader.read(0, {name: "label"}).column(name)
    rows = np.flatnonzero(column.is_valid().to_numpy())
    is_one = is_number(column)[rows]
    if len(rows) and (is_one[0] or is_one.mean() >= _MOSTLY):
        row = int(rows[np.argmin(is_one)])
        raise DataError(
            f"{reader.source.name}: column {name!r} has numbers, but row {row} has "
            f"{shown(column[row].as_py())}; mend it, or list the columns to train on in data.features"
        )


def roles(spec: TableData, feature_names: Sequence[str], readers: Sequence[Reader]) -> dict[str, Role]:
    """What each column is read for, target last.

    Raises: DataError if a file lacks a column or has one of another kind than the spec or the first file.
    """
    columns: dict[str, Role] = dict.fromkeys(feature_names, _INPUT_ROLES[spec.input_kind])
    if spec.target is not None:
        columns[spec.target] = "label" if spec.target_kind == "class" else "number"
        if spec.target_kind == "value" and _kind(readers[0], spec.target) == "list of numbers":
            columns[spec.target] = "numbers"
    for reader in readers:
        for name, role in columns.items():
            _check(reader, readers[0], name, role)
    return columns


def kind_of(type_: pa.DataType) -> str:
    """The kind of a column, as messages name it."""
    if isinstance(type_, pa.BaseExtensionType):
        return kind_of(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return kind_of(type_.value_type)
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return "number"
    if pa.types.is_boolean(type_):
        return "number"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return "text"
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    if is_list and kind_of(type_.value_type) == "number":
        return "list of numbers"
    return _EMPTY if pa.types.is_null(type_) else str(type_)


def nearest(name: str, known: Sequence[str]) -> str:
    """What to do about a name that is not there."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    return f"it has: {shown}" if known else "it has no columns"


def _kind(reader: Reader, name: str) -> str:
    index = reader.schema.get_field_index(name)
    return kind_of(reader.schema.field(index).type) if index >= 0 else "missing"


def _check(reader: Reader, first: Reader, name: str, role: Role) -> None:
    where = f"{reader.source.name}: column {name!r}"
    if name not in reader.schema.names:
        other = "" if reader is first else f" (which {first.source.name} has)"
        raise DataError(f"{where}{other} is missing; {nearest(name, reader.schema.names)}")
    if reader.schema.names.count(name) > 1:
        raise DataError(f"{where} is there more than once; rename one")
    found, wanted = _kind(reader, name), _WANTED[role]
    if found == _EMPTY:
        if reader.source.format == "csv":  # so it looked in the first block; the walk over all rows counts
            return
        raise DataError(f"{where} holds nothing but nulls; fill it, or name another one")
    if found not in wanted:
        raise DataError(
            f"{where} is {reader.schema.field(name).type}, and {_what(role)} needs a {' or '.join(wanted)} "
            "column; convert it, or name another one"
        )
    if reader is not first and found != _kind(first, name) and reader.source.format != "csv":
        raise DataError(
            f"{where} is {found}, and {_kind(first, name)} in {first.source.name}; give all files one schema"
        )


def _what(role: Role) -> str:
    return {
        "number": "a tabular feature or value target",
        "numbers": "image or audio input",
        "tokens": "token input",
        "text": "text input",
        "label": "a class target",
    }[role]
