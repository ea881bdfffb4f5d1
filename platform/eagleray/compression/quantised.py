"""Codec compressors: none, fp16, bf16, int8 and int4 differ in their codec only.

From three ranks: each rank takes the mean of the tiles that it owns and sends it to all (a quantised
reduce-scatter, then an all-gather), so a number is encoded twice, however many ranks there are. What the
owner's encoding loses goes to the owner's own residual, times n because the mean over ranks divides it by n.
Two ranks swap whole payloads, and both add them in rank order: one encoding, one round, as many bytes.

A bucket is cut into slices whose messages have SLICE bytes or so: while one is on its way, the next is
encoded and the one before is summed. Parameters that travel uncompressed lie in the same messages.

Shapes: n ranks, N elements of a bucket, K tiles of a slice, P bytes of a message's body.
Source: quantised reduce-scatter + all-gather as in CGX (arXiv 2111.08617) and ZeRO++ (arXiv 2306.10209);
error feedback on both encodings as in 1-bit Adam (arXiv 2102.02888).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from eagleray.compression.codec import Codec
from eagleray.compression.exchanges import ToAll, ToOwners, to_all, to_owners
from eagleray.compression.kernels import codec as make_codec
from eagleray.compression.kernels import passes_for
from eagleray.compression.layout import NUMEL, PAYLOAD, Bucket, Layout, Place
from eagleray.compression.memory import Memory
from eagleray.compression.wire import Message, Step, Wire

SLICE = 1 << 18
"""Bytes of a message that a bucket is cut for."""


class Quantised:
    """A compressor that is a codec and nothing else."""

    def __init__(self, codec: str, block: int | None = None):
        """Take the codec's name, and the size of its blocks, elements; None: the codec's default."""
        self.name = codec if codec != "raw" else "none"
        self._codec, self._block = codec, block
        self.keeps_dtype = codec == "raw"
        self.is_lossy = codec != "raw"
        made = make_codec(codec, block)  # a block that does not fit is told at once
        self._keeps_residual = made.keeps_residual

    def bind(self, layout: Layout, wire: Wire, memory: Memory) -> None:
        """See `Compressor`."""
        self.layout, self.wire, self.memory = layout, wire, memory

    def codec(self, device: torch.device, dtype: torch.dtype) -> Codec:
        """For the parameters that do not travel as they are."""
        return make_codec(self._codec, self._block, device, dtype)

    def sends_residual(self, place: Place) -> bool:
        """See `Compressor`."""
        return self._keeps_residual and not place.is_dense

    def plan(self, bucket: Bucket, device: torch.device) -> ScatteredPlan | PairPlan:
        """See `Compressor`."""
        kind = ScatteredPlan if self.wire.world_size > 2 else PairPlan
        return kind(self, bucket, device)


class _Tiles(NamedTuple):
    """The tiles of a slice that one codec takes."""

    codec: Codec
    residual: Tensor | None
    """float32 [M], where the codec loses enough to keep it."""
    rows: list[list[int]]
    """As in a table of tiles, PAYLOAD in the body of the owner's message."""
    owners: list[int]


class _Part(NamedTuple):
    """The same as tables, int64 [K, 5]."""

    codec: Codec
    residual: Tensor | None
    outgoing: Tensor
    """All tiles, PAYLOAD in the slice's buffer: what this rank sends to their owners."""
    own: Tensor
    """This rank's tiles, PAYLOAD in a body."""
    mean: Tensor
    """All tiles, PAYLOAD in the slice's buffer: the means, from their owners."""


class _Plan:
    """What the two plans share: the bucket cut into slices, for the gradient's type."""

    def __init__(self, compressor: Quantised, bucket: Bucket, device: torch.device):
        self._compressor, self._bucket, self._device = compressor, bucket, device
        self._wire = compressor.wire
        self._passes = passes_for(device)
        self._spans = bucket.spans
        self._dtype: torch.dtype | None = None
        self._keeps_errors = False

    def _cut(self, dtype: torch.dtype, slice_bytes: int) -> Iterator[tuple[list[_Tiles], list[int]]]:
        """The tiles of each slice, and how many bytes of them each owner has."""
        compressor = self._compressor
        codec = compressor.codec(self._device, dtype)
        raw = codec if codec.name == "raw" else make_codec("raw", None, self._device, dtype)
        residual = compressor.memory.flat("residual", "mean") if codec.keeps_residual else None
        self._dtype, self._keeps_errors = dtype, residual is not None
        found = []
        for index, (place, start) in enumerate(self._bucket.parts):
            takes_raw = place.is_dense or codec is raw
            for t in range(place.num_tiles):
                row = place.tile_row(t, start, index)
                found.append((takes_raw, row, compressor.layout.owner(place, t)))
        num_bytes = sum((raw if is_raw else codec).payload_bytes(row[NUMEL]) for is_raw, row, _ in found)
        count = max(1, min(round(num_bytes / slice_bytes), len(found)))
        for number in range(count):
            begin, end = (len(found) * k // count for k in (number, number + 1))
            sizes = [0] * self._wire.world_size
            tiles = [_Tiles(raw, None, [], []), _Tiles(codec, residual, [], [])]
            for is_raw, row, owner in sorted(found[begin:end], key=lambda one: not one[0]):
                one = tiles[0 if is_raw else 1]
                row[PAYLOAD] = sizes[owner]
                sizes[owner] += one.codec.payload_bytes(row[NUMEL])
                one.rows.append(row)
                one.owners.append(owner)
            yield [one for one in tiles if one.rows], sizes

    def _used(self, gradient: Tensor) -> Tensor | None:
        """Which parameters have a gradient, where it matters."""
        return self._passes.used(gradient, self._spans) if self._keeps_errors else None


class _ScatteredSlice(ToOwners):
    """Some tiles, their messages, and the means of their owners."""

    def __init__(self, tiles: list[_Tiles], sizes: list[int], wire: Wire, device: torch.device):
        super().__init__(sizes, wire, device)
        n = wire.world_size
        self.parts = [
            _Part(
                one.codec,
                one.residual,
                _table(one, self.sent_at),
                _table(_only(one, wire.rank), [0] * n),
                _table(one, self.results_at),
            )
            for one in tiles
        ]


class ScatteredPlan(_Plan):
    """One bucket on three ranks or more: see `Plan`."""

    def run(self, gradient: Tensor, step: Step) -> Generator[None, None, int]:
        """See `Plan`."""
        wire = self._wire
        if self._dtype != gradient.dtype:
            cut = self._cut(gradient.dtype, wire.world_size * SLICE)
            self._slices = [_ScatteredSlice(*one, wire, self._device) for one in cut]
        used, gain = self._used(gradient), wire.world_size / step.loss_scale

        def encode(one: _ScatteredSlice) -> int:
            return _encode(one.parts, gradient, one.buffer, step, used)

        def reduce(one: _ScatteredSlice, mean: Message) -> int:
            return max(
                p.codec.reduce(one.bodies, p.own, mean.body, p.residual, gain_out=gain) for p in one.parts
            )

        def decode(one: _ScatteredSlice) -> None:
            for p in one.parts:
                p.codec.decode(one.buffer, p.mean, gradient)

        return (yield from to_owners(wire, step, self._slices, encode=encode, reduce=reduce, decode=decode))


class _PairSlice(ToAll):
    """Some tiles and their messages, for one or two ranks: each has all tiles."""

    def __init__(self, tiles: list[_Tiles], wire: Wire, device: torch.device):
        size = 0
        for one in tiles:
            for row in one.rows:
                row[PAYLOAD] = size
                size += one.codec.payload_bytes(row[NUMEL])
        super().__init__(size, wire, device)
        tables = [_table(one, [0] * wire.world_size) for one in tiles]
        self.parts = [_Part(one.codec, one.residual, t, t, t) for one, t in zip(tiles, tables, strict=True)]


class PairPlan(_Plan):
    """One bucket on two ranks, or on one alone: see `Plan`."""

    def run(self, gradient: Tensor, step: Step) -> Generator[None, None, int]:
        """See `Plan`."""
        wire = self._wire
        if self._dtype != gradient.dtype:
            cut = self._cut(gradient.dtype, SLICE)
            self._slices = [_PairSlice(tiles, wire, self._device) for tiles, _ in cut]
        used, factor = self._used(gradient), 1.0 / wire.world_size

        def encode(one: _PairSlice) -> int:
            return _encode(one.parts, gradient, one.own.body, step, used)

        def decode(one: _PairSlice) -> None:
            for p in one.parts:
                for rank, body in enumerate(one.bodies):
                    p.codec.decode(body, p.own, gradient, accumulate=rank > 0, factor=factor)

        return (yield from to_all(wire, step, self._slices, encode=encode, decode=decode))


def _encode(parts: list[_Part], gradient: Tensor, buffer: Tensor, step: Step, used: Tensor | None) -> int:
    """Write what this rank sends; returns the largest parameter that is not finite, or -1."""
    s = step.loss_scale
    found = (
        p.codec.encode(gradient, p.outgoing, buffer, p.residual, gain_in=s, gain_out=1 / s, used=used)
        for p in parts
    )
    return max(found, default=-1)  # no part: the bucket's parameters have no elements


def _only(tiles: _Tiles, owner: int) -> _Tiles:
    """Those of one owner."""
    rows = [row for row, of in zip(tiles.rows, tiles.owners, strict=True) if of == owner]
    return tiles._replace(rows=rows, owners=[owner] * len(rows))


def _table(tiles: _Tiles, at: list[int]) -> Tensor:
    """The rows, their payloads moved to where the owner's body starts."""
    rows = [
        [*row[:PAYLOAD], at[owner] + row[PAYLOAD], *row[PAYLOAD + 1 :]]
        for row, owner in zip(tiles.rows, tiles.owners, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.int64).view(-1, 5)
