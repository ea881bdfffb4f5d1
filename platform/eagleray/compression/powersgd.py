"""PowerSGD: a matrix travels as its product with a few vectors, on alternating sides.

A gradient M [a, b], error included, is sent as Y = M X^T, where the r rows of X are orthonormal; the mean of
Y over the ranks, times X, is taken for the mean of M. What that leaves out stays in the residual. In the next
step the mean Y, made orthonormal, multiplies M from the left, and so on: a power iteration over the steps, so
that the vectors turn to the largest singular vectors of the gradients, and one exchange a step, not two.

Each rank keeps what its own product left out, not what the mean did: the mean over the ranks is the same, and
the residual is known before the exchange, in the pass that makes the product. Products are per parameter and
sums element by element, so that buckets do not matter; the parameters of a bucket travel in one vector.

Shapes: a x b a matrix (a parameter's first dimension by all others), r its vectors, N elements of a bucket,
V of the vector that is exchanged.
Source: PowerSGD (arXiv 1905.13727), Algorithm 1; sides that alternate as in github.com/epfml/powersgd.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eagleray.compression.exchanges import MeanBuffers, mean
from eagleray.compression.kernels import passes_for
from eagleray.compression.kernels.lowrank import low_rank_for
from eagleray.compression.layout import Bucket, Layout, Place
from eagleray.compression.memory import Memory
from eagleray.compression.steps import Steps
from eagleray.compression.wire import Step, Wire

FACTORS = "low_rank_factors"
"""Slot of the last mean product of each matrix: [r, 1, b] where the next one is from the right, [r, a, 1]
where it is from the left. All ranks hold the same bits."""
_KEPT_VECTORS = 4
"""Buffers for so many different choices of sides: parameters that are unused now and then get out of step."""


class PowerSGD:
    """A compressor that sends matrices as products with `rank` vectors."""

    name = "powersgd"
    keeps_dtype = False
    is_lossy = True

    def __init__(self, rank: int = 4, warmup_steps: int | None = None):
        """Take the settings.

        Args:
            rank: r.
            warmup_steps: so many steps travel uncompressed; None: none; what the first vectors miss is kept.
        """
        self.rank = rank
        self.warmup_steps = warmup_steps or 0

    def bind(self, layout: Layout, wire: Wire, memory: Memory) -> None:
        """See `Compressor`."""
        self.wire, self.memory = wire, memory
        self._steps = Steps(layout, memory) if self.warmup_steps else None

    def sends_residual(self, place: Place) -> bool:
        """See `Compressor`."""
        return matrix_shape(place, self.rank) is not None

    def plan(self, bucket: Bucket, device: torch.device) -> PowerPlan:
        """See `Compressor`."""
        return PowerPlan(self, bucket, device)

    def is_warming(self, step: Step) -> bool:
        """Whether this step travels uncompressed."""
        return self._steps is not None and self._steps.before(step) < self.warmup_steps


def matrix_shape(place: Place, rank: int) -> tuple[int, int] | None:
    """(a, b) of a parameter that its vectors make smaller; None for one that travels as it is."""
    if place.is_dense:
        return None
    a, b = place.shape[0], place.numel // place.shape[0]
    return (a, b) if rank * (a + b) < a * b else None


class _Matrix(NamedTuple):
    """A parameter that is sent as a product."""

    parameter: int
    """Its index in the bucket."""
    place: Place
    shape: tuple[int, int]
    start: int
    """First element in the gradient."""
    residual: Tensor
    """[a, b]"""
    starts: tuple[Tensor, Tensor]
    """What the vectors are at first: [r, a] on the left, [r, b] on the right."""

    def view(self, gradient: Tensor) -> Tensor:
        """Its part of a gradient [N], as [a, b]."""
        return gradient[self.start : self.start + self.place.numel].view(self.shape)


class _Exchange(NamedTuple):
    """What is sent where the products are from these sides."""

    buffers: MeanBuffers
    spans: Tensor
    """Where each of the bucket's parameters lies in the vector, int64 [P, 2] on the CPU."""
    inputs: list[Tensor]
    """Of each matrix: the orthonormal vectors, [r, b] or [r, a]."""
    products: list[Tensor]
    """Of each matrix: [r, a] or [r, b], in the vector."""
    dense: list[tuple[Tensor, int]]
    """Of each other parameter: its part of the vector, and its first element in the gradient."""


class PowerPlan:
    """One bucket: see `Plan`."""

    def __init__(self, compressor: PowerSGD, bucket: Bucket, device: torch.device):
        self._compressor, self._bucket, self._device = compressor, bucket, device
        self._wire, self._memory = compressor.wire, compressor.memory
        self._passes, self._low_rank = passes_for(device), low_rank_for(device)
        self._spans = bucket.spans
        self._uncompressed: MeanBuffers | None = None
        self._exchanges: dict[tuple[bool, ...], _Exchange] = {}
        residual = self._memory.flat("residual", "mean")
        self._matrices: list[_Matrix] = []
        for index, (place, start) in enumerate(bucket.parts):
            if (shape := matrix_shape(place, compressor.rank)) is not None:
                kept = residual[place.start : place.start + place.numel].view(shape)
                first = tuple(
                    _first_vectors(f"{place.name} {side}", compressor.rank, length).to(device)
                    for side, length in zip(("left", "right"), shape, strict=True)
                )
                self._matrices.append(_Matrix(index, place, shape, start, kept, first))  # pyright: ignore[reportArgumentType]

    def run(self, gradient: Tensor, step: Step) -> Generator[None, None, int]:
        """See `Plan`."""
        if self._compressor.is_warming(step):
            return (yield from self._run_uncompressed(gradient, step))
        self._uncompressed = None
        factors = [self._factor(one) for one in self._matrices]
        sides = tuple(factor.shape[1] == 1 for factor in factors)
        exchange = self._exchange_for(sides)
        for x, factor in zip(exchange.inputs, factors, strict=True):
            x.copy_(factor.view(x.shape))
        self._low_rank.orthogonalise(
            exchange.inputs,
            [one.starts[from_right] for one, from_right in zip(self._matrices, sides, strict=True)],
        )
        used = self._passes.used(gradient, self._spans).tolist()
        work = list(zip(self._matrices, sides, exchange.inputs, exchange.products, strict=True))
        for one, from_right, x, y in work:
            if used[one.parameter]:
                part = one.view(gradient)
                self._low_rank.project(part, one.residual, 1 / step.loss_scale, x, y, from_right=from_right)
            else:
                y.zero_()
        for part, start in exchange.dense:
            part.copy_(gradient[start : start + part.numel()])
        yield from mean(self._wire, step, 0, exchange.buffers)
        most = self._passes.absmax(exchange.buffers.vector, exchange.spans).tolist()
        for one, from_right, x, y in work:
            part, largest = one.view(gradient), most[one.parameter]
            if not math.isfinite(largest):
                part.fill_(math.nan)
                continue
            left, right = (y, x) if from_right else (x, y)
            self._low_rank.expand(left, right, step.loss_scale, part)
            if largest:  # else no rank has used it: its vectors stay
                shape = (len(y), -1, 1) if from_right else (len(y), 1, -1)
                factor = y.view(shape)
                self._memory.tensor(FACTORS, one.place.name, "same", factor.shape)[0].copy_(factor)
        for part, start in exchange.dense:
            gradient[start : start + part.numel()].copy_(part)
        return _first_bad(most)

    def _run_uncompressed(self, gradient: Tensor, step: Step) -> Generator[None, None, int]:
        if self._uncompressed is None:
            self._uncompressed = MeanBuffers(self._wire, self._bucket.numel, self._device)
        vector = self._uncompressed.vector
        vector.copy_(gradient)
        yield from mean(self._wire, step, 0, self._uncompressed)
        gradient.copy_(vector)
        return _first_bad(self._passes.absmax(vector, self._spans).tolist())

    def _factor(self, one: _Matrix) -> Tensor:
        """The matrix's last mean product, or its first vectors."""
        r, (a, b) = self._compressor.rank, one.shape
        kept = self._memory.tensors.get(FACTORS, ("same", {}))[1].get(one.place.name)
        if kept is None or kept.shape not in ((r, 1, b), (r, a, 1)):
            kept, _ = self._memory.tensor(FACTORS, one.place.name, "same", (r, 1, b))
            kept.copy_(one.starts[True].unsqueeze(1))
        return kept

    def _exchange_for(self, sides: tuple[bool, ...]) -> _Exchange:
        """Buffers, kept from step to step."""
        found = self._exchanges.get(sides)
        if found is None:
            while len(self._exchanges) >= _KEPT_VECTORS:
                del self._exchanges[next(iter(self._exchanges))]
            found = self._exchanges[sides] = self._make(sides)
        return found

    def _make(self, sides: tuple[bool, ...]) -> _Exchange:
        r = self._compressor.rank
        lengths = {
            one.parameter: one.shape[0 if from_right else 1]
            for one, from_right in zip(self._matrices, sides, strict=True)
        }
        spans, end = [], 0
        for index, place in enumerate(self._bucket.places):
            numel = r * lengths[index] if index in lengths else place.numel
            spans.append((end, numel))
            end += numel
        buffers = MeanBuffers(self._wire, end, self._device)
        parts = [buffers.vector[start : start + numel] for start, numel in spans]
        return _Exchange(
            buffers,
            torch.tensor(spans, dtype=torch.int64).view(-1, 2),
            [
                torch.empty(r, one.shape[from_right], device=self._device)
                for one, from_right in zip(self._matrices, sides, strict=True)
            ],
            [parts[one.parameter].view(r, -1) for one in self._matrices],
            [
                (part, start)
                for index, (part, start) in enumerate(zip(parts, self._bucket.starts, strict=True))
                if index not in lengths
            ],
        )


def _first_bad(most: list[float]) -> int:
    return next((index for index, largest in enumerate(most) if not math.isfinite(largest)), -1)


def _first_vectors(name: str, rank: int, length: int) -> Tensor:
    """Vectors [rank, length] that follow from the name: the same everywhere, as no generator's need be."""
    drawn = hashlib.shake_256(name.encode()).digest(2 * rank * length)
    numbers = np.frombuffer(drawn, dtype="<i2").astype(np.float32)
    return torch.from_numpy(numbers + np.float32(0.5)).view(rank, length)
