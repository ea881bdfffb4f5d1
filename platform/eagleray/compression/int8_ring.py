"""int8_ring: one byte for each number, summed as integers by the backend's own all-reduce.

All ranks use the same scale for a block, taken from the mean of the step before, so their codes can be added:
codes of n ranks stay within floor(127 / n), and so their sum within a byte. One round, one encoding, and the
backend's fastest path; but with more ranks a code says less: log2(254 / n) bits. What is beyond the scale's
range is cut off and, like what rounding loses, sent later through the residual.

A block's range is twice the largest number of its last mean, and never less than half of the range before:
it follows a gradient that grows by as much as 2 each step. Parameters that have no mean yet travel as bf16,
as does everything in the first step.

Shapes: N elements of a bucket, B of a block, b blocks of a parameter, n ranks.
Source: IntSGD (arXiv 2102.08374) for integer sums under a scale from the past; the rule for it is our own.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from eagleray.compression.compressor import Plan
from eagleray.compression.kernels import passes_for
from eagleray.compression.layout import Bucket, Layout, Place
from eagleray.compression.memory import Memory
from eagleray.compression.quantised import Quantised
from eagleray.compression.wire import Step, Wire

BLOCK = 256
RANGE = 2.0
"""A block's range over the largest number of its last mean."""
DECAY = 0.5
"""Of its range before that it keeps at least."""
_SUM = 1 << 20
"""Elements of a sum: one is on its way while the next is encoded."""
_CHUNK = 1 << 16
"""Elements computed at a time, so that they stay in the cache."""
_SMALLEST = 2.0**-100
"""A smaller range is none: codes are taken times its reciprocal."""
_STAGE = 30_000
"""Of the first sum: those below are the uncompressed parameters'."""


class _Piece(NamedTuple):
    """Blocks of one width of a parameter."""

    at: int
    """First element in the parameter."""
    numel: int
    block: int
    """First block."""
    rows: int


class Int8Ring:
    """See above. Half of each block's range is in the memory's slot "ring_range", the same on all ranks."""

    name = "int8_ring"
    keeps_dtype = False
    is_lossy = True

    def __init__(self, block: int = BLOCK):
        """Take B."""
        self.block = block
        self._unscaled = Quantised("bf16")

    def bind(self, layout: Layout, wire: Wire, memory: Memory) -> None:
        """See `Compressor`. Raises: ValueError: more ranks than codes."""
        if wire.world_size > 127:
            raise ValueError(f"int8_ring adds {wire.world_size} codes in a byte; use int8 for more than 127")
        self.layout, self.wire, self.memory = layout, wire, memory
        self._unscaled.bind(layout, wire, memory)

    def plan(self, bucket: Bucket, device: torch.device) -> Int8RingPlan:
        """See `Compressor`."""
        return Int8RingPlan(self, self._unscaled, bucket, device)


class Int8RingPlan:
    """One bucket: see `Plan`."""

    def __init__(self, compressor: Int8Ring, unscaled: Quantised, bucket: Bucket, device: torch.device):
        self._compressor, self._unscaled, self._bucket = compressor, unscaled, bucket
        self._device, self._wire, self._memory = device, compressor.wire, compressor.memory
        self._levels = 127 // compressor.wire.world_size
        self._residual = self._memory.flat("residual", "mean")
        self._passes = passes_for(device)
        self._spans = bucket.spans
        self._codes = torch.zeros(bucket.numel, dtype=torch.int8, device=device)
        self._value = torch.empty(max(_CHUNK, compressor.block), device=device)
        self._rest: dict[tuple[int, ...], Plan] = {}

    def run(self, gradient: Tensor, step: Step) -> Generator[None, None, int]:
        """See `Plan`."""
        bucket, wire = self._bucket, self._wire
        ranges = [self._range_of(place) for place in bucket.places]
        known = torch.stack([half.sum() for half in ranges]).cpu() > 0
        summed = [
            i
            for i, place in enumerate(bucket.places)
            if not place.is_dense and bool(known[i]) and place.numel
        ]
        most = self._passes.absmax(gradient, self._spans).cpu()
        is_bad = ~most.isfinite()
        is_used = most != 0
        bad_here = max((i for i in summed if is_bad[i]), default=-1)
        pending, end, begun = [], 0, 0
        for i in summed:
            place, start, half = bucket.places[i], bucket.starts[i], self._filled(ranges[i])
            codes = self._codes[end : end + place.numel]
            if bool(is_used[i]) and not bool(is_bad[i]):
                self._encode(place, gradient[start : start + place.numel], codes, half, step.loss_scale)
            else:
                codes.zero_()
            end += place.numel
            while end - begun >= _SUM or (i == summed[-1] and begun < end):
                part = self._codes[begun : min(begun + _SUM, end)]
                pending.append(wire.sum(step, _STAGE + len(pending), part, bad_here))
                begun += part.numel()
        bad = yield from self._send_rest(tuple(sorted({*range(len(ranges))} - {*summed})), gradient, step)
        end = 0
        for one in pending:
            yield
            one.wait()
            bad = max(bad, one.bad_parameter)
        for i in summed:
            place, start = bucket.places[i], bucket.starts[i]
            out = gradient[start : start + place.numel]
            self._decode(
                place, self._codes[end : end + place.numel], self._filled(ranges[i]), out, step.loss_scale
            )
            end += place.numel
        if bad >= 0:
            gradient[bucket.starts[bad] : bucket.starts[bad] + bucket.places[bad].numel].fill_(torch.nan)
        else:
            for place, start, half in zip(bucket.places, bucket.starts, ranges, strict=True):
                if not place.is_dense:
                    self._follow(place, gradient[start : start + place.numel], half, step.loss_scale)
        return bad

    def _send_rest(
        self, indices: tuple[int, ...], gradient: Tensor, step: Step
    ) -> Generator[None, None, int]:
        """The parameters that have no range yet, and those that are never compressed."""
        if not indices:
            return -1
        if indices not in self._rest:
            bucket = Bucket(
                tuple(self._bucket.places[i] for i in indices), tuple(self._bucket.starts[i] for i in indices)
            )
            self._rest = {indices: self._unscaled.plan(bucket, self._device)}
        bad = yield from self._rest[indices].run(gradient, step)
        return bad if bad < 0 else indices[bad]

    def _range_of(self, place: Place) -> Tensor:
        """Half a range for each block, [b], in the gradient's unit without a loss scale; 0: none yet."""
        blocks = 0 if place.is_dense else -(-place.numel // self._compressor.block)
        return self._memory.tensor("ring_range", place.name, "same", (blocks,))[0]

    @staticmethod
    def _filled(half: Tensor) -> Tensor:
        """The same, with the parameter's largest where a block has none."""
        return torch.where(half > 0, half, half.max())

    def _encode(self, place: Place, source: Tensor, codes: Tensor, half: Tensor, scale: float) -> None:
        """Codes of source + scale * residual; the residual takes what they lose."""
        kept = self._residual[place.start : place.start + place.numel]
        quantum = half * (scale / self._levels)
        inverse = quantum.reciprocal()
        for at, numel, block, rows in self._pieces(place):
            e = kept[at : at + numel]
            value = torch.mul(e, scale, out=self._value[:numel]).add_(source[at : at + numel])
            by, unit = (one[block : block + rows, None] for one in (inverse, quantum))
            code = (value.view(rows, -1) * by).round_().clamp_(-self._levels, self._levels)
            codes[at : at + numel].view(rows, -1).copy_(code)
            torch.sub(value, code.mul_(unit).view(-1), out=e).mul_(1 / scale)

    def _decode(self, place: Place, codes: Tensor, half: Tensor, out: Tensor, scale: float) -> None:
        """The mean, times the loss scale."""
        unit = half * (scale / (self._levels * self._wire.world_size))
        for at, numel, block, rows in self._pieces(place):
            torch.mul(
                codes[at : at + numel].view(rows, -1),
                unit[block : block + rows, None],
                out=out[at : at + numel].view(rows, -1),
            )

    def _follow(self, place: Place, mean: Tensor, half: Tensor, scale: float) -> None:
        """Take the ranges for the next step."""
        most = torch.empty_like(half)
        for at, numel, block, rows in self._pieces(place):
            torch.amax(mean[at : at + numel].view(rows, -1).abs(), 1, out=most[block : block + rows])
        torch.maximum(most.mul_(RANGE / scale), half.mul_(DECAY), out=half)
        half.masked_fill_(half < _SMALLEST, 0.0)

    def _pieces(self, place: Place) -> Iterator[_Piece]:
        """The parameter's blocks, some at a time; a last short one by itself."""
        size = self._compressor.block
        full, most = place.numel // size, max(1, _CHUNK // size)
        for block in range(0, full, most):
            rows = min(most, full - block)
            yield _Piece(block * size, rows * size, block, rows)
        if tail := place.numel % size:
            yield _Piece(full * size, tail, full, 1)
