"""Tables: Parquet, CSV, Arrow and JSON lines, in memory where they fit, else in blocks in storage."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator

import numpy as np

from eagleray.data import columns, digest, in_memory, normalize, split
from eagleray.data.decode import Decoder, Where, lists, storage
from eagleray.data.parts import Dataset
from eagleray.data.readers import Reader, Role, open_reader
from eagleray.data.sources import Source, find, reading
from eagleray.data.stored import Block, StoredPart, Table
from eagleray.data.targets import Classes, Scan, Values
from eagleray.errors import DataError
from eagleray.specs import Signature
from eagleray.specs.data import TableData

_MIB = 1 << 20
_LINE_BLOCK_FRACTION, _MIN_LINE_BLOCK, _MAX_LINE_BLOCK = 1 / 32, 4 << 10, 4 << 20
_SAMPLED_BYTES, _NUM_SAMPLED = 64 << 10, 16

# How the memory budget is spent. In memory: the table and its split copies. In storage: a window of the
# training part, one block on its way in (as Arrow columns and decoded), and the last block of the two other
# parts, which are read in order.
_IN_MEMORY_FRACTION, _WINDOW_FRACTION, _BLOCK_FRACTION = 1 / 2, 1 / 2, 1 / 4


def open_table(spec: TableData, is_raw: bool = False) -> Dataset:
    """The table of a spec, split and measured.

    Reads the footers of all files (or indexes their lines) and the target column once; where it normalises
    or fits in memory, all columns that it needs.

    Raises: DataError, one line: the file, the column, what was found, what to do.
    """
    normalize.check_kind(spec.normalize, spec.input_kind)
    budget = spec.memory_budget_mib * _MIB
    line_block = int(min(max(budget * _LINE_BLOCK_FRACTION, _MIN_LINE_BLOCK), _MAX_LINE_BLOCK))
    readers = [open_reader(source, line_block) for source in find(spec.paths, spec.format)]
    table = _planned(spec, readers)
    if table.num_rows * table.row_bytes <= budget * _IN_MEMORY_FRACTION:
        return _in_memory(table, is_raw)
    return _in_storage(table, budget, is_raw)


def _planned(spec: TableData, readers: list[Reader]) -> Table:
    """The table with its columns checked and its target's values known."""
    # A writer that had no rows had no types either: such files are not compared with the others.
    readers = [reader for reader in readers if sum(reader.rows_of_block)] or readers
    blocks = _blocks(readers)
    if not blocks:
        files = f" (in {len(readers)} files)" if len(readers) > 1 else ""
        raise DataError(f"{readers[0].source.name}: no rows{files}; write the data again")
    names = columns.features(readers, spec)
    roles = columns.roles(spec, names, readers)
    decoder = Decoder(spec, names, _input_shape(spec, names, roles, blocks[0]))
    return Table(spec, blocks, roles, decoder, _target(spec, roles, blocks))


def _blocks(readers: list[Reader]) -> list[Block]:
    blocks, first_sample = [], 0
    for reader in readers:
        first_row = 0
        for index, num_rows in enumerate(reader.rows_of_block):
            if num_rows:
                blocks.append(Block(reader, index, first_row, first_sample, num_rows))
            first_row += num_rows
            first_sample += num_rows
    return blocks


def _input_shape(
    spec: TableData, names: tuple[str, ...], roles: dict[str, Role], first: Block
) -> tuple[int, ...]:
    if spec.input_kind == "tabular":
        return (len(names),)
    if spec.input_kind in ("text", "tokens"):
        return (spec.sequence_length,)
    if spec.input_shape:
        return spec.input_shape
    name = names[0]
    with reading(first.reader.source):
        column = storage(first.reader.read(first.index, {name: roles[name]}).column(name))
        _, offsets = lists(column, name, Where(first.reader.source.name, first.first_row))
    return (int(offsets[1] - offsets[0]),)


def _target(spec: TableData, roles: dict[str, Role], blocks: list[Block]) -> Classes | Values | None:
    """What the target column holds: one walk over it alone."""
    if spec.target is None:
        return None
    scan = Scan(spec.target, spec.target_kind == "class")
    for block in blocks:
        source = block.reader.source
        column = block.reader.read(block.index, {spec.target: roles[spec.target]}).column(spec.target)
        with reading(source):
            scan.add(column, Where(source.name, block.first_row))
    return scan.result()


def _in_memory(table: Table, is_raw: bool) -> Dataset:
    num_rows, decoder = table.num_rows, table.decoder
    inputs = np.empty((num_rows, *decoder.kept_shape), decoder.kept_dtype)
    targets = None
    for number, block in enumerate(table.blocks):
        rows, window = table.read(number), slice(block.first_sample, block.first_sample + block.num_rows)
        inputs[window] = rows.inputs
        if rows.targets is not None:
            if targets is None:
                targets = np.empty((num_rows, *rows.targets.shape[1:]), rows.targets.dtype)
            targets[window] = rows.targets
    # Normalised once, here; the parts' own finishing then has nothing left to scale.
    finish = functools.partial(decoder.finish, normalization=None)
    what = table.blocks[0].reader.source.name
    return in_memory.dataset(
        inputs, targets, _signature(table), table.spec, what=what, finish=finish, is_raw=is_raw
    )


def _in_storage(table: Table, budget: float, is_raw: bool) -> Dataset:
    _check_blocks(table, budget)
    numbers = range(len(table.blocks))
    sizes = np.array([np.bincount(table.parts_of(number), minlength=3) for number in numbers])
    totals: dict[str, int] = dict(zip(split.PARTS, sizes.sum(axis=0).tolist(), strict=True))
    split.check_sizes(table.spec.split, totals, table.blocks[0].reader.source.name)
    signature, normalization = _signature(table), None
    if table.spec.normalize == "standard" and not is_raw:
        normalization = normalize.measure(table.inputs_of(0))
        signature = signature.model_copy(update={"normalization": normalization})
    capacities = {"train": int(budget * _WINDOW_FRACTION), "validation": 1, "test": 1}
    parts = {
        name: StoredPart(table, number, sizes[:, number], normalization, capacities[name])
        for number, name in enumerate(split.PARTS)
        if totals[name]
    }
    layout = f"two-level {parts['train'].blocks}"
    return Dataset(
        signature=signature,
        digest=digest.of_dataset(_content(table), table.spec, layout),
        train=parts["train"],
        validation=parts.get("validation"),
        test=parts.get("test"),
    )


def _check_blocks(table: Table, budget: float) -> None:
    """Raises: DataError if one block does not fit into its share of the budget."""
    for block in table.blocks:
        decoded = block.num_rows * table.row_bytes
        needed = block.reader.bytes_of_block(block.index, table.columns) + decoded
        if needed > budget * _BLOCK_FRACTION:
            rows = max(1, int(block.num_rows * budget * _BLOCK_FRACTION / needed))
            raise DataError(
                f"{block.reader.source.name}: block {block.index} ({block.num_rows} rows) takes about "
                f"{needed / _MIB:.3g} MiB to read, more than a quarter of data.memory_budget_mib "
                f"({budget / _MIB:g}); raise it to {math.ceil(needed / _BLOCK_FRACTION / _MIB)}, or write "
                f"the file with at most {rows} rows a row group (Parquet) or record batch (Arrow)"
            )


def _signature(table: Table) -> Signature:
    spec, target, decoder = table.spec, table.target, table.decoder
    labels = target.labels if isinstance(target, Classes) else ()
    target_shape = {
        "class": (),
        "value": (target.size,) if isinstance(target, Values) else (),
        "tokens": decoder.input_shape,
    }
    kind = "tokens" if spec.target is None else spec.target_kind
    return Signature(
        input_kind=spec.input_kind,
        input_shape=decoder.input_shape,
        target_kind=kind,
        target_shape=target_shape[kind],
        feature_names=decoder.features if spec.input_kind == "tabular" else (),
        num_classes=len(labels) or None,
        labels=labels,
        vocabulary_size=decoder.vocabulary_size,
        tokenizer="bytes" if spec.input_kind == "text" else None,
        padding_token=decoder.padding_token,
        mask_token=None if decoder.padding_token is None else decoder.padding_token + 1,
        sample_rate_hz=spec.sample_rate_hz,
    )


def _content(table: Table) -> str:
    """SHA-256 over each file's size, rows, version (ETag) and a sample of its bytes.

    Not over all bytes: every rank would read the whole table once more. The sample is 16 stretches of 64 KiB,
    the file's end (Parquet's footer with its statistics) among them. Times are left out, so that copies on
    several machines are equal.
    """
    content = hashlib.sha256()
    readers = {block.reader.source.name: block.reader for block in table.blocks}
    for reader in readers.values():
        source = reader.source
        content.update(f"{source.num_bytes} {reader.rows_of_block} {source.version}\n".encode())
        with reading(source):
            for piece in _sampled(source):
                content.update(piece)
    return content.hexdigest()


def _sampled(source: Source) -> Iterator[bytes]:
    last = max(0, source.num_bytes - _SAMPLED_BYTES)
    starts = sorted({last * step // (_NUM_SAMPLED - 1) for step in range(_NUM_SAMPLED)})
    with source.open() as file:
        for start in starts:
            file.seek(start)
            yield file.read(_SAMPLED_BYTES)
