"""A table that is larger than memory: blocks in storage, and a bounded number of their rows in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eagleray.data.decode import Decoder, Where
from eagleray.data.parts import Array, Arrays, Blocks, Positions
from eagleray.data.readers import Reader, Role
from eagleray.data.sources import reading
from eagleray.data.split import assign
from eagleray.data.targets import Classes, Values
from eagleray.specs import Normalization
from eagleray.specs.data import TableData

_ORDER_BYTES = 32
"""Of each row of a window: its position, and while the window is shuffled its row, sort key and place."""


@dataclass(frozen=True)
class Block:
    """Rows that are read together."""

    reader: Reader
    index: int
    """In its file."""
    first_row: int
    """In its file."""
    first_sample: int
    """In the whole table."""
    num_rows: int


@dataclass(frozen=True)
class Rows:
    """Decoded rows, as they are kept in memory: inputs [N, ...], targets [N, ...] or none."""

    inputs: Array
    targets: Array | None

    def chosen(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Rows:
        """Copies of some rows."""
        return Rows(self.inputs[rows], None if self.targets is None else self.targets[rows])


@dataclass(frozen=True)
class Table:
    """The blocks of all files, and how they are decoded."""

    spec: TableData
    blocks: Sequence[Block]
    columns: dict[str, Role]
    decoder: Decoder
    target: Classes | Values | None
    num_reads: NDArray[np.int64] = field(init=False)
    """How often each block has been read and decoded [num_blocks]; counted up by `read`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_reads", np.zeros(len(self.blocks), np.int64))

    @property
    def num_rows(self) -> int:
        """Rows of all blocks."""
        return sum(block.num_rows for block in self.blocks)

    @property
    def row_bytes(self) -> int:
        """Bytes of one decoded row, its target included."""
        size = self.target.size * 4 if isinstance(self.target, Values) else 8
        return self.decoder.row_bytes + (0 if self.target is None else size)

    def read(self, number: int) -> Rows:
        """All rows of a block. Raises: DataError if they cannot be read or used."""
        block = self.blocks[number]
        self.num_reads[number] += 1
        where = Where(block.reader.source.name, block.first_row)
        table = block.reader.read(block.index, self.columns)
        with reading(block.reader.source):
            inputs = self.decoder.inputs(table, where)
            if self.target is None or self.spec.target is None:
                return Rows(inputs, None)
            return Rows(inputs, self.target.decode(table.column(self.spec.target), where))

    def parts_of(self, number: int) -> NDArray[np.uint8]:
        """The part of the split [N] that each row of a block belongs to."""
        block = self.blocks[number]
        stop = block.first_sample + block.num_rows
        return assign(self.spec.split, self.spec.split_seed, block.first_sample, stop)

    def inputs_of(self, part: int) -> Iterator[Array]:
        """The inputs of one part, block by block (to measure them)."""
        for number in range(len(self.blocks)):
            is_chosen = self.parts_of(number) == part
            if is_chosen.any():
                yield self.read(number).inputs[is_chosen]


class StoredPart:
    """One part of a table in storage; safe to share between threads.

    Keeps the rows of the least recently read blocks out of memory, up to `capacity_bytes` (one block at
    least). In the order that `blocks` asks for, each block is read once per epoch.
    """

    def __init__(
        self,
        table: Table,
        part: int,
        sizes: Positions,
        normalization: Normalization | None,
        capacity_bytes: int,
    ):
        """`sizes` [num_blocks]: how many rows of each block belong to the part."""
        self.num_samples = int(sizes.sum())
        self.blocks = Blocks(sizes, max(1, capacity_bytes // (table.row_bytes + _ORDER_BYTES)))
        self._table, self._part, self._normalization = table, part, normalization
        self._ends = np.cumsum(sizes)
        self._kept: OrderedDict[int, Rows] = OrderedDict()
        self._num_kept = 0
        self._lock = threading.Lock()

    def fetch(self, positions: Positions) -> Arrays:
        """The samples at `positions`; blocks that are not in memory are read."""
        block_of = np.searchsorted(self._ends, positions, side="right")
        row_of = positions - (self._ends - self.blocks.sizes)[block_of]
        pieces: list[Rows] = []
        places: list[NDArray[np.int64]] = []
        with self._lock:
            for number in self._in_memory_first(np.unique(block_of)):
                places.append(np.flatnonzero(block_of == number))
                pieces.append(self._block(number).chosen(row_of[places[-1]]))
        order = np.argsort(np.concatenate(places))
        inputs = np.concatenate([piece.inputs for piece in pieces])[order]
        targets = [piece.targets for piece in pieces if piece.targets is not None]
        kept_targets = np.concatenate(targets)[order] if targets else None
        return self._table.decoder.finish(inputs, kept_targets, self._normalization)

    def _in_memory_first(self, numbers: NDArray[np.int64]) -> list[int]:
        """So that a batch over two windows does not read a block of the first again."""
        return sorted(numbers.tolist(), key=lambda number: number not in self._kept)

    def _block(self, number: int) -> Rows:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        # Room is made before the block is read: the bound holds at every moment.
        size = int(self.blocks.sizes[number])
        while self._kept and self._num_kept + size > self.blocks.window_samples:
            _, dropped = self._kept.popitem(last=False)
            self._num_kept -= len(dropped.inputs)
        rows = self._table.read(number).chosen(self._table.parts_of(number) == self._part)
        self._kept[number] = rows
        self._num_kept += len(rows.inputs)
        return rows
