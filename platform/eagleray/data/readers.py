"""The files of a table as blocks of rows that can be read in any order: row groups, record batches, lines.

Only pyarrow decodes: no metadata of a file is evaluated, and types of other libraries' own (extension
types) come as what they are stored as.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from numpy.typing import NDArray

from eagleray.data.sources import Source, reading
from eagleray.errors import DataError

_COMPUTE: Any = pyarrow.compute  # makes its functions at import, where pyright cannot see them
_NUMBER = r"(?i)^\s*[+-]?(\d+\.?\d*|\.\d+|inf|infinity|nan)(e[+-]?\d+)?\s*$"
_SHOWN = 40

Role = Literal["number", "numbers", "tokens", "text", "label"]
"""What a column is read for: one number, a list of numbers, a list of tokens, text, a class."""


class Reader(Protocol):
    """One file."""

    source: Source
    schema: pa.Schema
    """Names and types of the columns (text formats: as found in the first block)."""
    rows_of_block: list[int]

    def bytes_of_block(self, block: int, columns: Mapping[str, Role]) -> int:
        """About so much memory the columns of the block take when read."""
        ...

    def read(self, block: int, columns: Mapping[str, Role]) -> pa.Table:
        """The columns of the block. Raises: DataError if the file cannot be read."""
        ...


def open_reader(source: Source, block_bytes: int) -> Reader:
    """A reader of the file; blocks of CSV and JSON lines have about `block_bytes`.

    Raises: DataError if the file is not what its format says.
    """
    readers: dict[str, Callable[[Source, int], Reader]] = {
        "parquet": ParquetReader,
        "arrow": ArrowReader,
        "csv": CsvReader,
        "jsonl": JsonReader,
    }
    with reading(source):
        return readers[source.format](source, block_bytes)


class ParquetReader:
    """Row groups. The footer is kept, the file is not kept open: a table may have thousands."""

    def __init__(self, source: Source, block_bytes: int):
        self.source = source
        with source.open() as file:
            self._metadata = pyarrow.parquet.read_metadata(file)
        self.schema = self._metadata.schema.to_arrow_schema()
        self.rows_of_block = [self._group(index).num_rows for index in range(self._metadata.num_row_groups)]

    def _group(self, block: int) -> pyarrow.parquet.RowGroupMetaData:
        return self._metadata.row_group(block)

    def bytes_of_block(self, block: int, columns: Mapping[str, Role]) -> int:
        """Uncompressed size, as the footer has it."""
        group = self._group(block)
        chunks = [group.column(index) for index in range(group.num_columns)]
        return sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if chunk.path_in_schema in columns or chunk.path_in_schema.split(".")[0] in columns
        )

    def read(self, block: int, columns: Mapping[str, Role]) -> pa.Table:
        """One row group."""
        with reading(self.source), self.source.open() as source:
            file = pyarrow.parquet.ParquetFile(source, metadata=self._metadata)
            return file.read_row_group(block, columns=list(columns), use_threads=False)


class ArrowReader:
    """Record batches of an Arrow file (Feather version 2); a stream, which has no index, is one block."""

    def __init__(self, source: Source, block_bytes: int):
        self.source = source
        with source.open() as file:
            self._is_stream = file.read(6) != b"ARROW1"
        with source.open() as file:
            if self._is_stream:
                stream = pa.ipc.open_stream(file)
                self.schema, self.rows_of_block = stream.schema, [sum(batch.num_rows for batch in stream)]
                return
            batches = pa.ipc.open_file(file)
            self.schema = batches.schema
            self.rows_of_block = [
                batches.get_batch(index).num_rows for index in range(batches.num_record_batches)
            ]

    def bytes_of_block(self, block: int, columns: Mapping[str, Role]) -> int:
        """An even share of the file's bytes."""
        rows = max(1, sum(self.rows_of_block))
        return self.source.num_bytes * self.rows_of_block[block] // rows

    def read(self, block: int, columns: Mapping[str, Role]) -> pa.Table:
        """One record batch."""
        with reading(self.source), self.source.open() as file:
            if self._is_stream:
                return pa.ipc.open_stream(file).read_all().select(list(columns))
            fields = [self.schema.get_field_index(name) for name in columns]
            batches = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=fields))
            return pa.table(batches.get_batch(block)).select(list(columns))


class _LinesReader:
    """Lines of text, in blocks that are found once by their byte offsets."""

    def __init__(self, source: Source, block_bytes: int):
        self.source = source
        with source.open() as file:
            self._offsets = block_offsets(file, source.num_bytes, block_bytes, self._last_line_end)
        first = self._parse_first(self._bytes(0))
        self.schema = first.schema
        others = range(1, len(self._offsets) - 1)
        self.rows_of_block = [first.num_rows, *(self._count(self._bytes(block)) for block in others)]

    def _last_line_end(self, chunk: bytes) -> int:
        raise NotImplementedError

    def _parse_first(self, data: bytes) -> pa.Table:
        raise NotImplementedError

    def _count(self, data: bytes) -> int:
        raise NotImplementedError

    def _bytes(self, block: int) -> bytes:
        with self.source.open() as file:
            file.seek(self._offsets[block])
            return file.read(self._offsets[block + 1] - self._offsets[block])

    def bytes_of_block(self, block: int, columns: Mapping[str, Role]) -> int:
        """The block's text and about as much again for its columns."""
        return 2 * (self._offsets[block + 1] - self._offsets[block])


class CsvReader(_LinesReader):
    """Comma-separated values (tabs in a .tsv) with a header; quoted values may hold line ends."""

    def _last_line_end(self, chunk: bytes) -> int:
        return last_unquoted_line_end(chunk)

    def _options(self, data: bytes, names: list[str] | None) -> dict[str, object]:
        delimiter = "\t" if self.source.path.lower().endswith(".tsv") else ","
        return {
            "read_options": pyarrow.csv.ReadOptions(
                use_threads=False, block_size=len(data) + 1, column_names=names
            ),
            "parse_options": pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        }

    def _parse_first(self, data: bytes) -> pa.Table:
        return pyarrow.csv.read_csv(pa.py_buffer(data), **self._options(data, None))

    def _count(self, data: bytes) -> int:
        name = self.schema.names[0]
        convert = pyarrow.csv.ConvertOptions(include_columns=[name], column_types={name: pa.string()})
        options = self._options(data, self.schema.names)
        return pyarrow.csv.read_csv(pa.py_buffer(data), convert_options=convert, **options).num_rows

    def read(self, block: int, columns: Mapping[str, Role]) -> pa.Table:
        """One block of lines; classes come as text, whatever they look like in this block."""
        try:
            return self._read(block, columns)
        except DataError as error:
            if "conversion error" in str(error):
                self._find_text(block, columns)
            raise

    def _find_text(self, block: int, columns: Mapping[str, Role]) -> None:
        """Raises: DataError if a column of numbers has something else in this block; names the first."""
        for name in columns:
            if columns[name] != "number" or pa.types.is_boolean(self.schema.field(name).type):
                continue
            # As text, whose nulls are those of numbers.
            column = self._read(block, {name: "label"}, pa.string()).column(name)
            rows = np.flatnonzero(column.is_valid().to_numpy() & ~is_number(column))
            if len(rows):
                row, value = sum(self.rows_of_block[:block]) + int(rows[0]), column[int(rows[0])].as_py()
                raise DataError(
                    f"{self.source.name}: column {name!r}: row {row} has {shown(value)}, not a number; mend "
                    "or drop such rows, or list the columns to train on in data.features"
                )

    def _read(self, block: int, columns: Mapping[str, Role], type_: pa.DataType | None = None) -> pa.Table:
        column_types = {name: type_ or self._read_as(name, role) for name, role in columns.items()}
        convert = pyarrow.csv.ConvertOptions(
            include_columns=list(columns),
            column_types=column_types,
            strings_can_be_null=True,
            # A text of "NA" is a text; elsewhere pyarrow's own list of words for nothing holds.
            **({"null_values": [""]} if "text" in columns.values() else {}),
        )
        with reading(self.source):
            data = self._bytes(block)
            options = self._options(data, None if block == 0 else self.schema.names)
            return pyarrow.csv.read_csv(pa.py_buffer(data), convert_options=convert, **options)

    def _read_as(self, name: str, role: Role) -> pa.DataType:
        found = self.schema.field(name).type
        if role == "number":
            return found if pa.types.is_boolean(found) else pa.float64()
        # Fractions are not classes, and are refused as such; the rest is text until all of it has been seen.
        return found if role == "label" and pa.types.is_floating(found) else pa.string()


class JsonReader(_LinesReader):
    """One JSON object a line."""

    def _last_line_end(self, chunk: bytes) -> int:
        return chunk.rfind(b"\n") + 1

    def _parse(self, data: bytes, parse: pyarrow.json.ParseOptions | None = None) -> pa.Table:
        options = pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1)
        return pyarrow.json.read_json(pa.py_buffer(data), read_options=options, parse_options=parse)

    def _parse_first(self, data: bytes) -> pa.Table:
        return self._parse(data)

    def _count(self, data: bytes) -> int:
        return sum(1 for line in data.split(b"\n") if line.strip())

    def read(self, block: int, columns: Mapping[str, Role]) -> pa.Table:
        """One block of lines."""
        types: dict[Role, pa.DataType] = {
            "number": pa.float64(),
            "numbers": pa.list_(pa.float64()),
            "tokens": pa.list_(pa.int64()),
            "text": pa.string(),
        }
        found = {name: self.schema.field(name).type for name in columns}
        fields = [
            (name, found[name] if pa.types.is_boolean(found[name]) else types.get(role, found[name]))
            for name, role in columns.items()
        ]
        parse = pyarrow.json.ParseOptions(
            explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"
        )
        with reading(self.source):
            return self._parse(self._bytes(block), parse)


def is_number(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Which texts [N] are numbers; False for nulls."""
    return _COMPUTE.match_substring_regex(column, _NUMBER).fill_null(False).to_numpy()


def shown(text: str) -> str:
    """The text as messages quote it."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def block_offsets(
    file: pa.NativeFile, num_bytes: int, block_bytes: int, last_line_end: Callable[[bytes], int]
) -> list[int]:
    """Where each block begins, and the file's end; blocks end with a line. Memory: one block.

    `last_line_end(chunk)` is the offset after the last line that ends inside a chunk that begins with a
    line, or 0.
    """
    offsets, size = [0], block_bytes
    while offsets[-1] + size < num_bytes:
        file.seek(offsets[-1])
        end = last_line_end(file.read(size))
        if end == 0:
            size *= 2  # one line is longer than a block
            continue
        offsets.append(offsets[-1] + end)
        size = block_bytes
    return [*offsets, num_bytes]


def last_unquoted_line_end(chunk: bytes) -> int:
    """Offset after the last line end outside quotes, or 0; an escaped quote is two, and changes nothing."""
    if b'"' not in chunk:
        return chunk.rfind(b"\n") + 1
    characters = np.frombuffer(chunk, np.uint8)
    is_inside = np.cumsum(characters == ord('"'), dtype=np.int32) & 1
    ends = np.flatnonzero((characters == ord("\n")) & (is_inside == 0))
    return int(ends[-1]) + 1 if len(ends) else 0
