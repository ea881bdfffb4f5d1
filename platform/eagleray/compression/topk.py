"""The largest numbers of each parameter, and what was not sent is kept for later steps.

Each rank sends the k = ratio * numel largest of residual + gradient (`kernels.sparse`), to all others where
that is little. From some number of ranks on all their entries together are nearly the whole gradient; then
each rank sends the largest of every owner's tiles to that owner, who adds them up, sends the k largest sums
to all, and keeps the rest in its own residual: as many bytes whatever the number of ranks. All add in rank
order, so that replicas are equal to the last bit.

With a momentum m each rank sums u = m u + g, and sends the largest of v + u in place of v + g; where
something is sent, u begins again at 0. Parameters that travel uncompressed lie in the same messages; with a
momentum, what comes out for them is the momentum of their mean. The optimizer must then have none.

Shapes: n ranks, N elements of a bucket, U units of a slice, P parameters of a bucket.
Source: Deep Gradient Compression (arXiv 1712.01887): momentum correction, masking, warm-up; Ok-Topk (doi
10.1145/3503221.3508399): the reduction by owners, there with one residual.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eagleray.compression.exchanges import ToAll, ToOwners, to_all, to_owners
from eagleray.compression.kernels import codec, passes_for, sparse, sparse_for
from eagleray.compression.layout import NUMEL, PARAMETER, PAYLOAD, TILE, Bucket, Layout, Place
from eagleray.compression.memory import Memory
from eagleray.compression.steps import Steps
from eagleray.compression.wire import Message, Step, Wire

SLICE = 1 << 17
"""Bytes of a message from which on the next parameters go into another."""
GATHERED = 0.5
"""Bytes for each element of the model that all ranks together may send to each; for more, owners reduce."""
WARMUP_STEPS = 100
WARMUP_RATIO = 0.25
MOMENTUM = 0.9
"""Where a spec asks for momentum correction and nobody says which."""
_STAGE = 4.0
"""About by how much the ratio falls from one stage of the warm-up to the next."""


class TopK:
    """A compressor that sends the largest numbers."""

    name = "topk"
    keeps_dtype = False
    is_lossy = True

    def __init__(self, ratio: float = 0.01, warmup_steps: int | None = None, momentum: float = 0.0):
        """Take the settings.

        Args:
            ratio: share of a parameter's numbers that is sent, above 0, at most 1.
            warmup_steps: over so many steps the ratio falls from WARMUP_RATIO to that; None: WARMUP_STEPS.
            momentum: what the optimizer would have, and must not have then; 0: none.
        """
        self.ratio, self.momentum = ratio, momentum
        self._warmup_steps = WARMUP_STEPS if warmup_steps is None else warmup_steps

    def bind(self, layout: Layout, wire: Wire, memory: Memory) -> None:
        """See `Compressor`."""
        self.layout, self.wire, self.memory = layout, wire, memory
        self._steps = Steps(layout, memory) if self._warmup_steps else None

    def sends_residual(self, place: Place) -> bool:
        """See `Compressor`."""
        return not place.is_dense

    def plan(self, bucket: Bucket, device: torch.device) -> TopKPlan:
        """See `Compressor`."""
        return TopKPlan(self, bucket, device)

    def ratio_at(self, step: Step) -> float:
        """The share that is sent in this step: the last ratio, or that of a stage of the warm-up."""
        done = self._steps.before(step) if self._steps else 0
        if done >= self._warmup_steps or self.ratio >= WARMUP_RATIO:
            return self.ratio
        stages = math.ceil(math.log(WARMUP_RATIO / self.ratio, _STAGE))
        fallen = (done * stages // self._warmup_steps) / stages
        return float(f"{WARMUP_RATIO * (self.ratio / WARMUP_RATIO) ** fallen:.3g}")


def count(numel: int, ratio: float) -> int:
    """k: how many of so many numbers are sent."""
    return min(max(math.ceil(ratio * numel - 1e-6), 1), numel)


class TopKPlan:
    """One bucket: see `Plan`."""

    def __init__(self, compressor: TopK, bucket: Bucket, device: torch.device):
        self._compressor, self._bucket, self._device = compressor, bucket, device
        self._passes = passes_for(device)
        self._spans = bucket.spans
        self._is_dense = torch.tensor([place.is_dense for place in bucket.places])
        self._exchange: tuple[float, _Gathered | _Split] | None = None

    def run(self, gradient: Tensor, step: Step) -> Generator[None, None, int]:
        """See `Plan`."""
        compressor = self._compressor
        memory, n = compressor.memory, compressor.wire.world_size
        ratio = compressor.ratio_at(step)
        if self._exchange is None or self._exchange[0] != ratio:
            kind = _Split if n > 2 and 4 * n * ratio > GATHERED else _Gathered
            self._exchange = (ratio, kind(compressor, self._bucket, self._device, ratio))
        most = self._passes.absmax(gradient, self._spans).cpu()
        states = sparse.states_of(most * (1 / step.loss_scale))
        bad = ((states == sparse.BAD) & ~self._is_dense).nonzero().flatten().tolist()
        momentum = memory.flat("momentum", "mean") if compressor.momentum else None
        work = _Work(gradient, step, states, bad[0] if bad else -1, memory.flat("residual", "mean"), momentum)
        found = yield from self._exchange[1].run(work)
        if momentum is not None:
            self._add_momentum(gradient, momentum, step)
        return found

    def _add_momentum(self, gradient: Tensor, momentum: Tensor, step: Step) -> None:
        """Make the means of dense parameters their momentum, where they are finite and not 0."""
        for place, start in self._bucket.parts:
            if place.is_dense and place.numel:
                mean = gradient[start : start + place.numel]
                kept = momentum[place.start : place.start + place.numel]
                most = mean.abs().amax()
                is_new = (most > 0) & (most < torch.inf)
                summed = kept * self._compressor.momentum + mean * (1 / step.loss_scale)
                kept.copy_(torch.where(is_new, summed, kept))
                mean.copy_(torch.where(is_new, summed * step.loss_scale, mean))


class _Work(NamedTuple):
    """One step of a bucket."""

    gradient: Tensor
    step: Step
    states: Tensor
    """uint8 [P]."""
    bad: int
    residual: Tensor
    momentum: Tensor | None


class _Row(NamedTuple):
    """A dense tile or a sparse unit, PAYLOAD in the body of the owner's message."""

    owner: int
    is_dense: bool
    columns: list[int]


class _Exchange:
    """What both ways to exchange a bucket share."""

    def __init__(self, compressor: TopK, bucket: Bucket, device: torch.device, ratio: float):
        self.compressor, self.bucket, self.ratio = compressor, bucket, ratio
        self.wire, self.device = compressor.wire, device
        self.raw, self.codec = codec("raw", None, device), sparse_for(device)

    def slices(self) -> Iterator[tuple[list[_Row], list[int]]]:
        """The rows of whole parameters whose messages have SLICE bytes or so, and each owner's bytes."""
        rows: list[_Row] = []
        sizes = [0] * self.wire.world_size
        for index, (place, start) in enumerate(self.bucket.parts):
            if max(sizes) >= SLICE:
                yield rows, sizes
                rows, sizes = [], [0] * self.wire.world_size
            tiles = (
                _Row(self.owner(place, t), True, place.tile_row(t, start, index))
                for t in range(place.num_tiles)
            )
            for owner, is_dense, columns in tiles if place.is_dense else self.units(place, start, index):
                if is_dense:
                    num_bytes = self.raw.payload_bytes(columns[NUMEL])
                else:
                    num_bytes = sparse.payload_bytes(columns[NUMEL], columns[sparse.COUNT])
                columns[PAYLOAD] = sizes[owner]
                sizes[owner] += num_bytes
                rows.append(_Row(owner, is_dense, columns))
        if rows:
            yield rows, sizes

    def owner(self, place: Place, tile: int) -> int:
        """Whose message a tile lies in."""
        raise NotImplementedError

    def units(self, place: Place, start: int, index: int) -> Iterator[_Row]:
        """The parameter as units."""
        raise NotImplementedError

    def encode(self, work: _Work, tables: _Tables, payload: Tensor, thresholds: Tensor) -> int:
        """Write what this rank sends; returns a parameter that is not finite, or -1."""
        self.codec.encode(
            work.gradient,
            tables.units,
            payload,
            work.residual,
            work.states,
            thresholds=thresholds,
            momentum=work.momentum,
            gain=1 / work.step.loss_scale,
            beta=self.compressor.momentum,
        )
        return max(work.bad, self.raw.encode(work.gradient, tables.dense, payload))


class _Tables(NamedTuple):
    """Rows as tables."""

    dense: Tensor
    """int64 [K, 5]."""
    units: Tensor
    """int64 [U, 7]."""


def _tables(rows: Sequence[_Row], at: Sequence[int]) -> _Tables:
    """Their payloads moved to where the owner's body starts; `at` is by owner."""
    placed = [
        (
            row.is_dense,
            [*row.columns[:PAYLOAD], row.columns[PAYLOAD] + at[row.owner], *row.columns[PARAMETER:]],
        )
        for row in rows
    ]
    dense = [columns[: PARAMETER + 1] for is_dense, columns in placed if is_dense]
    units = [columns for is_dense, columns in placed if not is_dense]
    return _Tables(
        torch.tensor(dense, dtype=torch.int64).view(-1, PARAMETER + 1),
        torch.tensor(units, dtype=torch.int64).view(-1, sparse.STRIDE + 1),
    )


class _GatheredSlice(ToAll):
    """Parameters that all ranks send to all."""

    def __init__(self, rows: list[_Row], sizes: list[int], wire: Wire, device: torch.device):
        super().__init__(sizes[0], wire, device)
        self.tables = _tables(rows, [0])
        self.thresholds = torch.zeros(len(self.tables.units))


class _Gathered(_Exchange):
    """Everybody's entries to everybody."""

    def __init__(self, compressor: TopK, bucket: Bucket, device: torch.device, ratio: float):
        super().__init__(compressor, bucket, device, ratio)
        self._slices = [_GatheredSlice(*one, self.wire, device) for one in self.slices()]

    def owner(self, place: Place, tile: int) -> int:
        """There is one message."""
        return 0

    def units(self, place: Place, start: int, index: int) -> Iterator[_Row]:
        """The whole parameter is one."""
        k = count(place.numel, self.ratio)
        yield _Row(0, False, [start, place.start, place.numel, 0, index, k, 1])

    def run(self, work: _Work) -> Generator[None, None, int]:
        """See `Plan.run`."""
        step, n = work.step, self.wire.world_size

        def encode(one: _GatheredSlice) -> int:
            return self.encode(work, one.tables, one.own.body, one.thresholds)

        def decode(one: _GatheredSlice) -> None:
            for rank, body in enumerate(one.bodies):
                self.raw.decode(body, one.tables.dense, work.gradient, accumulate=rank > 0, factor=1 / n)
            factor = step.loss_scale / n
            self.codec.decode(one.bodies, one.tables.units, work.gradient, factor=factor)

        return (yield from to_all(self.wire, step, self._slices, encode=encode, decode=decode))


class _SplitSlice(ToOwners):
    """Parameters whose tiles are summed by their owners."""

    def __init__(self, rows: list[_Row], sizes: list[int], wire: Wire, device: torch.device):
        super().__init__(sizes, wire, device)
        self.sent = _tables(rows, self.sent_at)
        self.owned = _tables([row for row in rows if row.owner == wire.rank], [0] * wire.world_size)
        self.summed = _tables(rows, self.results_at)
        self.thresholds = torch.zeros(len(self.sent.units))


class _Split(_Exchange):
    """Entries to the owners of their tiles, sums from there to everybody."""

    def __init__(self, compressor: TopK, bucket: Bucket, device: torch.device, ratio: float):
        super().__init__(compressor, bucket, device, ratio)
        self._slices = [_SplitSlice(*one, self.wire, device) for one in self.slices()]

    def owner(self, place: Place, tile: int) -> int:
        """See `Layout`."""
        return self.compressor.layout.owner(place, tile)

    def units(self, place: Place, start: int, index: int) -> Iterator[_Row]:
        """A unit for each owner; k is shared out by their numbers' shares, at least 1 for each."""
        k, n, done = count(place.numel, self.ratio), self.wire.world_size, 0
        for first in range(min(n, place.num_tiles)):
            tiles = range(first, place.num_tiles, n)
            short = place.num_tiles * TILE - place.numel if tiles[-1] == place.num_tiles - 1 else 0
            numel = len(tiles) * TILE - short
            share = (done + numel) * k // place.numel - done * k // place.numel
            done += numel
            at = first * TILE
            columns = [start + at, place.start + at, numel, 0, index, max(share, 1), n]
            yield _Row(self.owner(place, first), False, columns)

    def run(self, work: _Work) -> Generator[None, None, int]:
        """See `Plan.run`."""
        step = work.step

        def encode(one: _SplitSlice) -> int:
            return self.encode(work, one.sent, one.buffer, one.thresholds)

        def reduce(one: _SplitSlice, sums: Message) -> int:
            self.codec.reduce(one.bodies, one.owned.units, sums.body, work.residual)
            return self.raw.reduce(one.bodies, one.owned.dense, sums.body)

        def decode(one: _SplitSlice) -> None:
            self.raw.decode(one.buffer, one.summed.dense, work.gradient)
            factor = step.loss_scale / self.wire.world_size
            self.codec.decode([one.buffer], one.summed.units, work.gradient, factor=factor)

        return (
            yield from to_owners(self.wire, step, self._slices, encode=encode, reduce=reduce, decode=decode)
        )
