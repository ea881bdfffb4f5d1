"""The target column: what its values are, and how they become numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from eagleray.data.decode import Where, lists, numbers, storage
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
        if not _is_list(column.type):
            return numbers(column).astype(np.float32)[:, None]
        elements, offsets = lists(storage(column), self.name, where)
        lengths = np.diff(offsets)
        if (wrong := np.flatnonzero(lengths != self.size)).size:
            raise DataError(
                f"{where.file}: column {self.name!r}: row {where.first_row + int(wrong[0])} has "
                f"{int(lengths[wrong[0]])} values, and the first row {self.size}; make all of one length"
            )
        return elements[offsets[0] : offsets[-1]].astype(np.float32).reshape(-1, self.size)


class Scan:
    """One walk over the target column: distinct values, and the rows that have none."""

    def __init__(self, name: str, is_class: bool):
        self._name = name
        self._is_class = is_class
        self._distinct: set[Any] = set()
        self._num_missing = 0
        self._first_missing: Where | None = None
        self._size = 1
        self._file = ""

    def add(self, column: pa.ChunkedArray, where: Where) -> None:
        """Take in a block. Raises: DataError if class values are not whole numbers or text."""
        self._file = where.file
        self._count_missing(column, where)
        if not self._is_class:
            if _is_list(column.type) and column.length() and where.first_row == 0:
                self._size = len(column[0].as_py() or [])
            return
        self._distinct.update(_plain(column.drop_null(), self._name, where).unique().to_pylist())
        if len(self._distinct) > MAX_CLASSES:
            raise DataError(
                f"{where.file}: target {self._name!r} has more than {MAX_CLASSES} different values; "
                'set data.target_kind = "value", or name another target'
            )

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
            return Values(self._name, self._size)
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


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
