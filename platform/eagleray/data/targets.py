"""The target column: what its values are, and how they become numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from eagleray.data.decode import Where, check_finite, lists, numbers, storage
from eagleray.data.parts import Array
from eagleray.errors import DataError

_COMPUTE: Any = pyarrow.compute  # makes its functions at import, where pyright cannot see them
MAX_CLASSES = 1_000_000
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")


@dataclass(frozen=True)
class Classes:
    """Class values in the order of their index: whole numbers, or text."""

    values: tuple[int, ...] | tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the class index."""
        return tuple(str(value) for value in self.values)

    def decode(self, column: pa.ChunkedArray, where: Where) -> Array:
        """Class index [N] of each row, int64."""
        if isinstance(self.values[0], str):
            found = _COMPUTE.index_in(_plain(column), value_set=pa.array(self.values, pa.string()))
            return found.to_numpy().astype(np.int64)
        plain = _plain(column)
        whole = plain.cast(pa.float64()).cast(pa.int64()) if pa.types.is_string(plain.type) else plain
        return np.searchsorted(np.array(self.values), whole.to_numpy())


@dataclass(frozen=True)
class Values:
    """One number or a list of numbers a row."""

    name: str
    size: int

    def decode(self, column: pa.ChunkedArray, where: Where) -> Array:
        """Values [N, V] float32. Raises: DataError if lists differ in length."""
        return _rows(column, self.name, self.size, where)


class Scan:
    """One walk over the target column: distinct values, and the rows that have none."""

    def __init__(self, name: str, is_class: bool):
        self._name = name
        self._is_class = is_class
        self._distinct: set[Any] = set()
        self._num_missing = 0
        self._first_missing: Where | None = None
        self._size: int | None = None
        self._file = ""

    def add(self, column: pa.ChunkedArray, where: Where) -> None:
        """Take in a block.

        Raises:
            DataError: class values are not whole numbers or text; values are not finite, or differ in number.
        """
        self._file = where.file
        self._count_missing(column, where)
        if not self._is_class:
            self._check_values(column, where)
            return
        self._distinct.update(_plain(column.drop_null(), self._name, where).unique().to_pylist())
        if len(self._distinct) > MAX_CLASSES:
            raise DataError(
                f"{where.file}: target {self._name!r} has more than {MAX_CLASSES} different values; "
                'set data.target_kind = "value", or name another target'
            )

    def _check_values(self, column: pa.ChunkedArray, where: Where) -> None:
        if column.null_count and _is_list(storage(column).type):
            return  # they are counted, and refused at the end
        if self._size is None:
            self._size = _first_size(column, self._name, where)
        rows = _rows(column, self._name, self._size, where)
        if not _is_list(storage(column).type):
            rows = np.where(np.isnan(rows), np.float32(0), rows)  # counted as well
        check_finite(rows, self._name, where)

    def _count_missing(self, column: pa.ChunkedArray, where: Where) -> None:
        is_floating = pa.types.is_floating(column.type)
        missing = np.flatnonzero(column.is_null(nan_is_null=is_floating).to_numpy())
        if len(missing) and self._first_missing is None:
            self._first_missing = Where(where.file, where.first_row + int(missing[0]))
        self._num_missing += len(missing)

    def result(self) -> Classes | Values:
        """How the target is decoded. Raises: DataError if rows have none, or there is one class only."""
        if self._first_missing is not None:
            raise DataError(
                f"{self._first_missing.file}: target {self._name!r}: {self._num_missing} rows have no value "
                f"(NaN or null; first: row {self._first_missing.first_row}); fill or drop them"
            )
        if not self._is_class:
            return Values(self._name, self._size or 1)
        values = self._ordered()
        if len(values) < 2:
            raise DataError(
                f"{self._file}: target {self._name!r} has one class only ({', '.join(map(repr, values))}); "
                "a class target needs two at least"
            )
        return Classes(values)

    def _ordered(self) -> tuple[Any, ...]:
        """Sorted; text that is all whole numbers is sorted (and kept) as such, so that 10 comes after 9."""
        names = [value for value in self._distinct if isinstance(value, str) and not _WHOLE.fullmatch(value)]
        if not names:
            return tuple(sorted({int(float(value)) for value in self._distinct}))
        if not all(isinstance(value, str) for value in self._distinct):
            raise DataError(
                f"{self._file}: target {self._name!r} has numbers in one file and text such as "
                f"{names[0]!r} in another; write all files alike"
            )
        return tuple(sorted(self._distinct))


def classes_of(values: Array, name: str, what: str) -> tuple[Classes, Array]:
    """The classes of an array [N] of whole numbers or text, and each one's index [N]. Raises: DataError."""
    where, scan = Where(what, 0), Scan(name, is_class=True)
    column = pa.chunked_array([pa.array(values)])
    scan.add(column, where)
    classes = scan.result()
    assert isinstance(classes, Classes)
    return classes, classes.decode(column, where)


def _plain(column: pa.ChunkedArray, name: str = "", where: Where | None = None) -> pa.ChunkedArray:
    """Class values as int64 or text. Raises: DataError if a number is not whole."""
    if pa.types.is_boolean(column.type):
        return column.cast(pa.string())
    column = storage(column)
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        floating = column.cast(pa.float64()).to_numpy()
        floating = floating[~np.isnan(floating)]
        is_whole = np.isfinite(floating) & (floating == np.trunc(floating))
        if not is_whole.all():
            example = floating[~is_whole][0]
            raise DataError(
                f"{where.file if where else ''}: target {name!r} has values such as {example:g}, and classes "
                'are whole numbers or text; set data.target_kind = "value"'
            )
        return pa.chunked_array([pa.array(floating.astype(np.int64))])
    return column.cast(pa.int64() if pa.types.is_integer(column.type) else pa.string())


def _first_size(column: pa.ChunkedArray, name: str, where: Where) -> int:
    """How many values the first row has. Raises: DataError if it has none."""
    first = storage(column)[0]
    size = len(first) if _is_list(first.type) else 1
    if size == 0:
        raise DataError(
            f"{where.file}: column {name!r}: row {where.first_row} is an empty list; a value target needs "
            "one number at least: fill or drop such rows"
        )
    return size


def _rows(column: pa.ChunkedArray, name: str, size: int, where: Where) -> Array:
    """Values [N, size] float32, infinite where float32 cannot hold them. Raises: DataError."""
    column = storage(column)
    if _is_list(column.type):
        elements, offsets = lists(column, name, where)
        lengths, values = np.diff(offsets), elements[offsets[0] : offsets[-1]]
    else:
        values = numbers(column)
        lengths = np.ones(len(values), np.int64)
    if (wrong := np.flatnonzero(lengths != size)).size:
        raise DataError(
            f"{where.file}: column {name!r}: row {where.first_row + int(wrong[0])} has "
            f"{int(lengths[wrong[0]])} values, and the first row {size}; make all of one length"
        )
    with np.errstate(over="ignore"):
        return values.astype(np.float32).reshape(-1, size)


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
