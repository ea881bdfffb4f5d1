"""Codes that the ranks' sums are made of: a byte for each number, under scales that all ranks have already.

A number's code is how many quanta of its block it has, rounded half to even and cut off at the largest code
that a rank may send. Unlike in `eager`, a scale does not come from the numbers, so nothing is searched before
they are encoded. The compiled kernels (ring.cpp) give the same bits: float32, each operation rounded by
itself.

Shapes: E numbers of a parameter, B of a block, b = ceil(E / B) blocks; the last may be short.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from eagleray.compression.kernels.runs import CPU_ELEMENTS


class RingCodec(Protocol):
    """Tensors are flat and contiguous."""

    def encode(
        self,
        source: Tensor,
        residual: Tensor,
        quanta: Tensor,
        codes: Tensor,
        *,
        block: int,
        levels: int,
        gain: float = 1.0,
    ) -> None:
        """Write the codes of v = gain * residual + source; the residual becomes (v - code * quantum) / gain.

        Args:
            source: float32 [E], finite; what is not makes its residual so.
            residual: float32 [E], finite.
            quanta: float32 [b], above 0: what a code of 1 stands for in a block.
            codes: int8 [E].
            block: B.
            levels: the largest code, at most 127.
            gain: the residual's unit, in the source's.

        Raises: IndexError: the sizes do not fit each other.
        """
        ...

    def decode(self, codes: Tensor, quanta: Tensor, out: Tensor, *, block: int) -> Tensor:
        """Write code * quantum to `out`; returns the largest magnitude of each block: see `largest`.

        Args:
            codes: int8 [E].
            quanta: float32 [b].
            out: float32 [E].
            block: B.

        Raises: IndexError: the sizes do not fit each other.
        """
        ...


class EagerRing:
    """The reference: see `RingCodec`. Works on the tensors' own device."""

    def encode(
        self,
        source: Tensor,
        residual: Tensor,
        quanta: Tensor,
        codes: Tensor,
        *,
        block: int,
        levels: int,
        gain: float = 1.0,
    ) -> None:
        """See `RingCodec.encode`."""
        check(block, quanta, source, residual, codes)
        inverse = quanta.reciprocal()
        for part, rows in _pieces(source, block):
            value = torch.mul(residual[part], gain).add_(source[part]).view(len(inverse[rows]), -1)
            code = (value * inverse[rows, None]).round_().clamp_(-levels, levels)
            codes[part].view(code.shape).copy_(code)
            lost = value.sub_(code.mul_(quanta[rows, None])).mul_(1 / gain)
            residual[part] = lost.view(-1)

    def decode(self, codes: Tensor, quanta: Tensor, out: Tensor, *, block: int) -> Tensor:
        """See `RingCodec.decode`."""
        check(block, quanta, codes, out)
        for part, rows in _pieces(codes, block):
            scale = quanta[rows, None]
            torch.mul(codes[part].view(len(scale), -1), scale, out=out[part].view(len(scale), -1))
        return largest(out, block)


def largest(numbers: Tensor, block: int) -> Tensor:
    """The largest magnitude of each block of numbers [E], float32 [b]; NaN where it has one."""
    most = torch.empty(-(-numbers.numel() // block), device=numbers.device)
    for part, rows in _pieces(numbers, block):
        torch.amax(numbers[part].view(len(most[rows]), -1).abs(), 1, out=most[rows])
    return most


def check(block: int, quanta: Tensor, *by_number: Tensor) -> None:
    """Raises: IndexError: quanta [b] and tensors [E] that do not belong together."""
    found = [one.numel() for one in by_number]
    if min(found) != max(found) or quanta.numel() != -(-max(found) // block):
        raise IndexError(f"{quanta.numel()} quanta of blocks of {block} do not go with tensors of {found}")


def _pieces(numbers: Tensor, block: int) -> Iterator[tuple[slice, slice]]:
    """Numbers and blocks of one width; on a CPU as many at a time as its cache likes."""
    numel = numbers.numel()
    full = numel // block
    most = max(1, CPU_ELEMENTS // block) if numbers.device.type == "cpu" else max(1, full)
    for first in range(0, full, most):
        last = min(first + most, full)
        yield slice(first * block, last * block), slice(first, last)
    if numel % block:
        yield slice(full * block, numel), slice(full, full + 1)
