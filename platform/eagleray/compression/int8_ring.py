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

from collections.abc import Generator

import torch
from torch import Tensor

from eagleray.compression.compressor import Plan
from eagleray.compression.kernels import passes_for, ring, ring_for
from eagleray.compression.layout import Bucket, Layout, Place
from eagleray.compression.memory import Memory
from eagleray.compression.quantised import Quantised
from eagleray.compression.wire import Pending, Step, Wire
from eagleray.errors import InputError

BLOCK = 256
MAX_RANKS = 127
"""With as many a code is -1, 0 or 1."""
RANGE = 2.0
"""A block's range over the largest number of its last mean."""
DECAY = 0.5
"""Of its range before that it keeps at least."""
_SUM = 1 << 20
"""Elements of a sum: one is on its way while the next is encoded."""
_SMALLEST = 2.0**-100
"""A smaller range is none: codes are taken times its reciprocal."""
_STAGE = 30_000
"""Of the first sum, where those below are the uncompressed parameters'; else it is 0: every scheme has
messages of that stage, by which who sends otherwise is noticed."""


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
        """See `Compressor`. Raises: InputError: so many ranks' codes do not fit into a byte."""
        if wire.world_size > MAX_RANKS:
            raise InputError(
                f"int8_ring adds the ranks' codes in one byte, which holds those of at most {MAX_RANKS}, "
                f"and this is a group of {wire.world_size}; choose int8, which does not mind"
            )
        self.layout, self.wire, self.memory = layout, wire, memory
        self._unscaled.bind(layout, wire, memory)

    def sends_residual(self, place: Place) -> bool:
        """See `Compressor`."""
        return not place.is_dense

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
        self._passes, self._ring = passes_for(device), ring_for(device)
        self._spans = bucket.spans
        self._codes = torch.zeros(bucket.numel, dtype=torch.int8, device=device)
        self._rest: dict[tuple[int, ...], Plan] = {}

    def run(self, gradient: Tensor, step: Step) -> Generator[None, None, int]:
        """See `Plan`."""
        bucket, wire, block = self._bucket, self._wire, self._compressor.block
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
        others = tuple(sorted({*range(len(ranges))} - {*summed}))
        first = _STAGE if others else 0
        bad_here = max((i for i in summed if is_bad[i]), default=-1)
        pending: list[Pending] = []
        sent: list[tuple[int, Tensor, Tensor]] = []
        end = begun = 0
        for i in summed:
            half, numel = self._filled(ranges[i]), bucket.places[i].numel
            codes = self._codes[end : end + numel]
            if bool(is_used[i]) and not bool(is_bad[i]):
                self._encode(i, gradient, half, codes, step.loss_scale)
            else:
                codes.zero_()
            sent.append((i, half, codes))
            end += numel
            while end - begun >= _SUM or (i == summed[-1] and begun < end):
                part = self._codes[begun : min(begun + _SUM, end)]
                pending.append(wire.sum(step, first + len(pending), part, bad_here))
                begun += part.numel()
        bad = yield from self._send_rest(others, gradient, step)
        for one in pending:
            yield
            one.wait()
            bad = max(bad, one.bad_parameter)
        largest: dict[int, Tensor] = {}
        for i, half, codes in sent:
            quanta = half * (step.loss_scale / (self._levels * wire.world_size))
            largest[i] = self._ring.decode(codes, quanta, self._part(gradient, i), block=block)
        if bad >= 0:
            self._part(gradient, bad).fill_(torch.nan)
        else:
            for i, (place, half) in enumerate(zip(bucket.places, ranges, strict=True)):
                if not place.is_dense:
                    most = largest[i] if i in largest else ring.largest(self._part(gradient, i), block)
                    _follow(half, most, step.loss_scale)
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

    def _encode(self, index: int, gradient: Tensor, half: Tensor, codes: Tensor, scale: float) -> None:
        """Codes of gradient + scale * residual; the residual takes what they lose."""
        place = self._bucket.places[index]
        self._ring.encode(
            self._part(gradient, index),
            self._residual[place.start : place.start + place.numel],
            half * (scale / self._levels),
            codes,
            block=self._compressor.block,
            levels=self._levels,
            gain=scale,
        )

    def _part(self, gradient: Tensor, index: int) -> Tensor:
        """A parameter's numbers."""
        start = self._bucket.starts[index]
        return gradient[start : start + self._bucket.places[index].numel]


def _follow(half: Tensor, most: Tensor, scale: float) -> None:
    """Make the ranges those for the next step; `most`: the means' largest magnitudes, [b], overwritten."""
    torch.maximum(most.mul_(RANGE / scale), half.mul_(DECAY), out=half)
    half.masked_fill_(half < _SMALLEST, 0.0)
