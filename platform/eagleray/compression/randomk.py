"""Random numbers of each parameter, the same on all ranks; what was not sent is kept for later steps.

Which ones follows from the step and the parameter's name, so no indices travel: the chosen numbers are a
small gradient, which the codec int8 exchanges as it does whole ones (`quantised`), with its errors fed
back. A parameter is cut into k parts of equal length, one number of each is sent.

Shapes: N elements of a bucket, P parameters, K numbers sent, D elements of its dense parameters.
Source: random-k with error feedback, Stich et al., Sparsified SGD with Memory (arXiv 1809.07599).
"""

from __future__ import annotations

import zlib
from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from eagleray.compression.kernels import passes_for, sparse
from eagleray.compression.layout import Bucket, Layout, Place
from eagleray.compression.memory import Memory
from eagleray.compression.quantised import Quantised
from eagleray.compression.steps import Steps
from eagleray.compression.topk import count
from eagleray.compression.wire import Step, Wire

_LOW = 0xFFFFFFFF


class RandomK:
    """A compressor that sends random numbers, the same of all ranks."""

    name = "randomk"
    keeps_dtype = False
    is_lossy = True

    def __init__(self, ratio: float = 0.01, block: int | None = None):
        """Take the share of a parameter's numbers that is sent, above 0, at most 1; and int8's block."""
        self.ratio, self.inner = ratio, Quantised("int8", block)

    def bind(self, layout: Layout, wire: Wire, memory: Memory) -> None:
        """See `Compressor`."""
        self.layout, self.wire, self.memory = layout, wire, memory
        self.steps = Steps(layout, memory)
        self.chosen = Layout(
            (
                (place.name, (place.numel,) if place.is_dense else (1, count(place.numel, self.ratio)))
                for place in layout.places.values()
            ),
            world_size=wire.world_size,
            dense_below=0,
        )
        """The layout of what is sent."""
        self.lost = Memory(self.chosen, memory.device)
        """Between the steps all zeros: what was lost has gone to the model's residual."""
        self.inner.bind(self.chosen, wire, self.lost)

    def sends_residual(self, place: Place) -> bool:
        """See `Compressor`."""
        return not place.is_dense

    def plan(self, bucket: Bucket, device: torch.device) -> RandomKPlan:
        """See `Compressor`."""
        return RandomKPlan(self, bucket, device)


class RandomKPlan:
    """One bucket: see `Plan`. What is sent has the dense parameters first."""

    def __init__(self, compressor: RandomK, bucket: Bucket, device: torch.device):
        self._compressor, self._bucket = compressor, bucket
        self._passes = passes_for(device)
        pairs = list(bucket.parts)
        self._spans = bucket.spans
        self._order = sorted(range(len(pairs)), key=lambda index: not pairs[index][0].is_dense)
        """Of the parameters, in what is sent."""
        sent = Bucket.packed(compressor.chosen.places[bucket.places[index].name] for index in self._order)
        self._sent = torch.zeros(sent.numel, device=device)
        self._sent_spans = sent.spans
        self._dense_at = {
            index: start
            for index, (place, start) in zip(self._order, sent.parts, strict=True)
            if place.is_dense
        }
        """By index in the bucket: first element in what is sent."""
        self._num_dense = sum(place.numel for place in sent.places if place.is_dense)
        self._inner = compressor.inner.plan(sent, device)
        sparse_ones = [
            _Stratified(index, *pairs[index], place.numel, place.start)
            for index, place in zip(self._order, sent.places, strict=True)
            if not place.is_dense
        ]
        self._strata = _Strata(sparse_ones, device)

    def run(self, gradient: Tensor, step: Step) -> Generator[None, None, int]:
        """See `Plan`."""
        compressor, strata, chosen = self._compressor, self._strata, self._sent[self._num_dense :]
        residual = compressor.memory.flat("residual", "mean")
        gain = 1 / step.loss_scale
        states = sparse.states_of(self._passes.absmax(gradient, self._spans).cpu() * gain).tolist()
        at = strata.draw(compressor.steps.before(step))
        at_flat = at + strata.to_flat
        for index in range(len(states)):
            self._take(gradient, residual, index, states[index], gain)
        v = residual[at_flat]
        used = None
        if any(states[index] != sparse.USED for index in strata.parameters):
            state = torch.tensor(states, device=at.device)[strata.parameter]
            used = state == sparse.USED
            v = torch.where(used, v, torch.where(state == sparse.BAD, torch.nan, 0.0))
        chosen.copy_(v)
        residual[at_flat] = 0.0 if used is None else torch.where(used, 0.0, residual[at_flat])
        found = yield from self._inner.run(self._sent, Step(step.number, step.bucket))
        lost = compressor.lost.flat("residual", "mean")
        residual[at_flat] += lost[strata.lost_at]
        lost[strata.lost_at] = 0.0
        self._put(gradient, at, step.loss_scale)
        return -1 if found < 0 else self._order[found]

    def _take(self, gradient: Tensor, residual: Tensor, index: int, state: int, gain: float) -> None:
        """Put a parameter's gradient into what is sent, if it is dense, else into the residual."""
        place, start = self._bucket.places[index], self._bucket.starts[index]
        g = gradient[start : start + place.numel]
        if place.is_dense:
            first = self._dense_at[index]
            self._sent[first : first + place.numel] = g
        elif state == sparse.USED:
            residual[place.start : place.start + place.numel] += g if gain == 1.0 else g.mul_(gain)

    def _put(self, gradient: Tensor, at: Tensor, loss_scale: float) -> None:
        """Make the gradient the mean; a parameter is not finite as a whole."""
        gradient.zero_()
        gradient[at] = self._sent[self._num_dense :] * loss_scale
        is_finite = self._passes.absmax(self._sent, self._sent_spans).isfinite().tolist()
        for number, index in enumerate(self._order):
            place, start = self._bucket.places[index], self._bucket.starts[index]
            if place.is_dense:
                first = self._dense_at[index]
                gradient[start : start + place.numel] = self._sent[first : first + place.numel]
            elif not is_finite[number]:
                gradient[start : start + place.numel] = torch.nan


class _Stratified(NamedTuple):
    """A parameter of which k numbers are sent."""

    at: int
    """Its index in the bucket."""
    place: Place
    start: int
    """First element in the gradient."""
    k: int
    lost_at: int
    """First element in the layout of what is sent."""


class _Strata:
    """The parts of the parameters one number of each of which is sent, one behind the other: tensors [K]."""

    def __init__(self, parameters: list[_Stratified], device: torch.device):
        self.parameters = [one.at for one in parameters]
        firsts, lengths, keys, to_flat, of, lost = ([torch.zeros(0, dtype=torch.int64)] for _ in range(6))
        for one in parameters:
            numbers = torch.arange(one.k + 1, dtype=torch.int64)
            bounds = (numbers * one.place.numel).div(one.k, rounding_mode="floor")
            firsts.append(bounds[:-1] + one.start)
            lengths.append(bounds.diff())
            keys.append((numbers[:-1] + zlib.crc32(one.place.name.encode())) & _LOW)
            to_flat.append(torch.full((one.k,), one.place.start - one.start))
            of.append(torch.full((one.k,), one.at))
            lost.append(numbers[:-1] + one.lost_at)
        self._firsts, self._lengths, self._keys = (torch.cat(x).to(device) for x in (firsts, lengths, keys))
        self.to_flat, self.parameter, self.lost_at = (torch.cat(x).to(device) for x in (to_flat, of, lost))

    def draw(self, number: int) -> Tensor:
        """One element of each in the gradient, int64 [K]: a hash of the step's number and of the stratum."""
        hashed = _mix(self._keys ^ _mix_one(number))
        return self._firsts + ((hashed * self._lengths) >> 32)


def _mix(x: Tensor) -> Tensor:
    """32 bits that look random, of 32 bits, int64. Source: lowbias32 of Wellons, hash-prospector."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _LOW
    return x ^ (x >> 16)


def _mix_one(number: int) -> int:
    return int(_mix(torch.tensor((number + 1) * 0x9E3779B9 & _LOW)))
