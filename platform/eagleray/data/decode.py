"""From columns of a block to arrays: how rows become samples.

Names: N rows of a block, F features, L elements of a row, W window of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eagleray.data import normalize
from eagleray.data.parts import Array, Arrays
from eagleray.data.tokenizer import ByteTokenizer
from eagleray.errors import DataError
from eagleray.specs import IGNORED_TARGET, Normalization
from eagleray.specs.data import TableData

_CHUNK_ELEMENTS = 1 << 20
"""Rows of tokens are gathered so many elements at a time: their indices take 8 bytes each."""


@dataclass(frozen=True)
class Where:
    """Of which rows messages speak."""

    file: str
    first_row: int


@dataclass(frozen=True)
class Decoder:
    """Rows to the arrays that are kept in memory, and those to what a batch needs."""

    spec: TableData
    features: tuple[str, ...]
    input_shape: tuple[int, ...]
    """Of one sample."""

    @property
    def is_tokens(self) -> bool:
        """Whether rows are windows of tokens."""
        return self.spec.input_kind in ("text", "tokens")

    @property
    def vocabulary_size(self) -> int | None:
        """Of the tokens: the tokenizer's or the spec's, and the padding and the mask at its end."""
        if self.spec.input_kind == "text":
            return ByteTokenizer.vocabulary_size
        return None if self.spec.vocabulary_size is None else self.spec.vocabulary_size + 2

    @property
    def padding_token(self) -> int | None:
        """The token that fills up short rows; the mask comes after it."""
        return None if self.vocabulary_size is None else self.vocabulary_size - 2

    @property
    def kept_dtype(self) -> np.dtype:
        """Of the arrays that are kept."""
        if not self.is_tokens:
            return np.dtype(np.float32)
        assert self.vocabulary_size is not None
        return np.dtype(np.uint16 if self.vocabulary_size <= 1 << 16 else np.int32)

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """Of one row as it is kept: next-token rows have one token more than a sample's input."""
        return (self._window,) if self.is_tokens else self.input_shape

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as it is kept."""
        return math.prod(self.kept_shape) * self.kept_dtype.itemsize

    @property
    def _window(self) -> int:
        return self.spec.sequence_length + (self.spec.target is None)

    def inputs(self, table: pa.Table, where: Where) -> Array:
        """The rows [N, ...] as they are kept, not normalised. Raises: DataError if a row is not usable."""
        if self.spec.input_kind == "tabular":
            return tabular(table, self.features, where)
        column = storage(table.column(self.features[0]))
        if self.spec.input_kind == "text":
            values, offsets = text(column)
        else:
            values, offsets = lists(column, self.features[0], where)
        if not self.is_tokens:
            return self._vectors(values, offsets, where)
        if self.spec.input_kind == "tokens":
            self._check_tokens(values, offsets, where)
        assert self.padding_token is not None
        return windows(values, offsets, self._window, self.padding_token, self.kept_dtype)

    def finish(self, kept: Array, targets: Array | None, normalization: Normalization | None) -> Arrays:
        """A batch of rows as they were kept, as the signature describes them."""
        if not self.is_tokens:
            assert targets is not None
            return Arrays(normalize.apply(kept, normalization), targets)
        if targets is not None:
            return Arrays(kept.astype(np.int64), targets)
        following = kept[:, 1:].astype(np.int64)
        following[following == self.padding_token] = IGNORED_TARGET
        return Arrays(kept[:, :-1].astype(np.int64), following)

    def _vectors(self, values: Array, offsets: NDArray[np.int64], where: Where) -> Array:
        lengths, wanted = np.diff(offsets), math.prod(self.input_shape)
        if (wrong := np.flatnonzero(lengths != wanted)).size:
            shape = "x".join(str(size) for size in self.input_shape)
            named = "data.input_shape" if self.spec.input_shape else "the first clip"
            raise DataError(
                f"{where.file}: column {self.features[0]!r}: {len(wrong)} rows do not have {wanted} values "
                f"({shape}, from {named}), first row {where.first_row + int(wrong[0])} with "
                f"{int(lengths[wrong[0]])}; make all rows of one length"
            )
        scale = 1 / 32768 if self.spec.input_kind == "audio" and values.dtype == np.int16 else 1
        rows = values[offsets[0] : offsets[-1]].astype(np.float32).reshape(
            -1, *self.input_shape
        ) * np.float32(scale)
        check_finite(rows.reshape(len(rows), -1), self.features[0], where)
        return rows

    def _check_tokens(self, values: Array, offsets: NDArray[np.int64], where: Where) -> None:
        used, limit = values[offsets[0] : offsets[-1]], self.spec.vocabulary_size
        is_wrong = (used < 0) | (used >= limit)
        if is_wrong.any():
            first = int(np.flatnonzero(is_wrong)[0])
            row = int(np.searchsorted(offsets - offsets[0], first, side="right")) - 1
            raise DataError(
                f"{where.file}: column {self.features[0]!r}: {int(is_wrong.sum())} tokens are not in "
                f"0..{limit - 1 if limit else 0}, first {used[first]} in row {where.first_row + row}; "
                "raise data.vocabulary_size, or tokenise again"
            )


def tabular(table: pa.Table, names: Sequence[str], where: Where) -> NDArray[np.float32]:
    """Columns [N, F] float32. Raises: DataError for NaN and infinite values."""
    rows = np.empty((table.num_rows, len(names)), np.float32)
    for index, name in enumerate(names):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is found
            rows[:, index] = numbers(table.column(name))
        check_finite(rows[:, index : index + 1], name, where)
    return rows


def numbers(column: pa.ChunkedArray) -> Array:
    """One number a row [N], float64 with NaN for null."""
    column = storage(column)
    return column.cast(pa.float64(), safe=False).to_numpy()


def storage(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column without an extension type or a dictionary."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    return column


def text(column: pa.ChunkedArray) -> tuple[Array, NDArray[np.int64]]:
    """UTF-8 bytes of all rows, and where each row begins [N + 1]; a null is an empty text."""
    array = column.cast(pa.large_string()).fill_null("").combine_chunks()
    _, offset_buffer, data = array.buffers()
    if len(array) == 0:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    offsets = np.frombuffer(offset_buffer, np.int64)[array.offset : array.offset + len(array) + 1]
    return np.frombuffer(data if data is not None else b"", np.uint8), offsets


def lists(column: pa.ChunkedArray, name: str, where: Where) -> tuple[Array, NDArray[np.int64]]:
    """Elements of all rows, and where each row begins [N + 1]. Raises: DataError for nulls."""
    if column.null_count:
        first = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(
            f"{where.file}: column {name!r}: {column.null_count} rows are null, first row "
            f"{where.first_row + first}; fill or drop them"
        )
    array = column.cast(pa.large_list(column.type.value_type)).combine_chunks()
    values = array.values
    if values.null_count:
        values = values.cast(pa.float64())  # nulls become NaN, and are found there
    return values.to_numpy(zero_copy_only=False), array.offsets.to_numpy()


def windows(values: Array, offsets: NDArray[np.int64], width: int, padding: int, dtype: np.dtype) -> Array:
    """The first `width` elements of each row [N, W], padded at the end."""
    lengths = np.minimum(np.diff(offsets), width)
    rows = np.full((len(lengths), width), padding, dtype)
    step = max(1, _CHUNK_ELEMENTS // width)
    for start in range(0, len(lengths), step):
        chunk = slice(start, min(start + step, len(lengths)))
        is_real = np.arange(width) < lengths[chunk, None]
        rows[chunk][is_real] = values[(offsets[:-1][chunk, None] + np.arange(width))[is_real]]
    return rows


def check_finite(values: Array, name: str, where: Where) -> None:
    """Raises: DataError if a value [N, L] is NaN, null or infinite; says how many, and where first."""
    is_bad = ~np.isfinite(values).all(axis=1)
    if is_bad.any():
        first = where.first_row + int(np.flatnonzero(is_bad)[0])
        last_row = where.first_row + len(values) - 1
        raise DataError(
            f"{where.file}: column {name!r}: NaN, null or infinite in {int(is_bad.sum())} of the rows "
            f"{where.first_row} to {last_row} (first: row {first}); fill or drop them "
            "(float32 holds up to 3.4e38)"
        )
