"""Sparse payloads: the largest numbers of a part of a parameter, and where they are.

A unit is a parameter, or the tiles of it that one rank owns. Its table is that of tiles with two columns
more, int64 [U, 7]: GRADIENT, FLAT, NUMEL, PAYLOAD, PARAMETER, then how many numbers are sent, k, and by how
many tiles its own tiles lie apart. GRADIENT and FLAT are those of its first tile, NUMEL counts all its
numbers; only its last tile may be short.

Bytes of a unit: float32 scale; 4 zeros; k values, float16; gaps; zeros up to a multiple of 8.
- Values are numbers / scale. The scale is a power of two, about 2^-14 of the largest number and at least
  2^-100, so products are exact: a value is its number rounded to 11 bits (coarser below 2^-28 of the
  largest). Scale NaN: the unit is not finite.
- A gap is how many numbers lie between one that is sent and the one before. Gaps have 8 or 16 bits,
  whichever take less room; the largest code says: so many numbers on, and none sent. So k + (NUMEL - k) //
  largest code are always enough, and the rest have that code too: at 1 % 1.4 bytes for each number sent.

Which numbers are sent depends on their magnitudes alone, of equal ones the first. Thresholds only save
time: where they are lost nothing changes. The compiled kernels (sparse.cpp) give the same bits.

Shapes: U units, E numbers of a unit, k sent, P parameters of a bucket.
Source: a threshold carried over steps as in Ok-Topk (doi 10.1145/3503221.3508399), momentum correction and
masking as in DGC (arXiv 1712.01887).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from eagleray.compression.layout import TILE

COUNT, STRIDE = 5, 6
"""The columns beyond those of a table of tiles."""
UNUSED, USED, BAD = range(3)
"""What a parameter's gradient is: all zero, finite, or not finite."""
LIMIT = 2.0**96
"""A gradient that is not smaller counts as not finite: a residual, where many add up, must not overflow."""
_HEAD = 8
_SMALLEST_SCALE = 2.0**-100
_SAMPLED = 101
"""One number in so many is looked at for a first threshold."""


def payload_bytes(numel: int, count: int) -> int:
    """Bytes of a unit of `numel` numbers, `count` of which are sent."""
    width, codes = gaps(numel, count)
    return -(-(_HEAD + 2 * count + width * codes) // 8) * 8


def gaps(numel: int, count: int) -> tuple[int, int]:
    """Bytes of a gap, and how many there are in a payload."""
    narrow, wide = (count + (numel - count) // most for most in (0xFF, 0xFFFF))
    return (1, narrow) if narrow <= 2 * wide else (2, wide)


def states_of(most: Tensor) -> Tensor:
    """UNUSED, USED or BAD, uint8 [P], of parameters by their gradients' largest magnitudes [P]."""
    return torch.where(most < LIMIT, (most > 0).to(torch.uint8), BAD).to(torch.uint8)


class SparseCodec(Protocol):
    """Numbers are float32, flat and contiguous; payloads uint8."""

    def encode(
        self,
        gradient: Tensor,
        units: Tensor,
        payload: Tensor,
        residual: Tensor,
        states: Tensor,
        *,
        thresholds: Tensor,
        momentum: Tensor | None = None,
        gain: float = 1.0,
        beta: float = 0.0,
    ) -> None:
        """Add the gradient to the residual and take the k largest numbers of each unit out into its payload.

        x = gain * gradient; residual += x, or with a momentum: momentum = beta * momentum + x; residual +=
        momentum. What is sent leaves the residual, but for its rounding, and the momentum becomes 0 there.

        Args:
            gradient: [N].
            units: int64 [U, 7] on the CPU.
            payload: see above.
            residual: [M].
            states: uint8 [P] on the CPU. UNUSED: nothing is sent, and residual and momentum stay; BAD: the
                same, and the payload says so.
            thresholds: [U] on the CPU; a magnitude to look above, kept for the next call. 0: none yet.
            momentum: [M], or None.
            gain: see above.
            beta: see above.

        Raises: IndexError: a unit leaves one of the tensors.
        """
        ...

    def decode(self, payloads: list[Tensor], units: Tensor, out: Tensor, *, factor: float = 1.0) -> None:
        """Write the sum of the payloads, in the order given, times `factor` to `out` (GRADIENT counts in it).

        Each number is multiplied by scale * factor, and then added. A unit that is bad in one of them is NaN.

        Raises: IndexError: a unit leaves a tensor, or what is in the payload leaves the unit.
        """
        ...

    def reduce(self, payloads: list[Tensor], units: Tensor, payload: Tensor, residual: Tensor) -> None:
        """Add n payloads in the order given, take the k largest sums of each unit, and keep the rest.

        All n have the PAYLOAD offsets of `units`, and so has `payload`, where the sums go. residual += sum -
        what is sent of it. A unit that is bad in one of them is bad, and its residual stays.

        Raises: IndexError: see `decode`.
        """
        ...


class _Unit(NamedTuple):
    """A row of the table."""

    gradient: int
    flat: int
    numel: int
    payload: int
    parameter: int
    sent: int
    stride: int

    def place(self, device: torch.device) -> Tensor | None:
        """Where its numbers lie behind its first, int64 [E]; None: one behind the other."""
        if self.stride == 1 or self.numel <= TILE:
            return None
        local = torch.arange(self.numel, device=device)
        return local + local.div(TILE, rounding_mode="floor") * ((self.stride - 1) * TILE)


class _Code(NamedTuple):
    """The parts of a unit's payload."""

    whole: Tensor
    scale: Tensor
    values: Tensor
    gaps: Tensor
    """uint8, or int16 with the bits of uint16."""

    def clear(self, scale: float = 0.0) -> None:
        """Nothing is sent."""
        self.whole.zero_()
        self.scale.fill_(scale)
        self.gaps.fill_(255 if self.gaps.dtype == torch.uint8 else -1)


class EagerSparse:
    """The reference: see `SparseCodec`. Works on any device, and waits for it."""

    def encode(
        self,
        gradient: Tensor,
        units: Tensor,
        payload: Tensor,
        residual: Tensor,
        states: Tensor,
        *,
        thresholds: Tensor,
        momentum: Tensor | None = None,
        gain: float = 1.0,
        beta: float = 0.0,
    ) -> None:
        """See `SparseCodec.encode`."""
        flags = states.tolist()
        for unit in _units(units, gradient, residual, payload, len(flags)):
            code = _code(payload, unit)
            place = unit.place(gradient.device)
            x = _take(gradient, unit.gradient, unit.numel, place)
            state = flags[unit.parameter]
            if state == USED:
                v = x if gain == 1.0 else x * gain
                kept = None if momentum is None else _take(momentum, unit.flat, unit.numel, place)
                if kept is not None:
                    v = kept = kept * beta + v
                v = _take(residual, unit.flat, unit.numel, place) + v
                chosen = largest(v, unit.sent)
                v[chosen] -= _write(code, v, chosen)
                _put(residual, unit.flat, place, v)
                if momentum is not None and kept is not None:
                    kept[chosen] = 0.0
                    _put(momentum, unit.flat, place, kept)
            else:
                code.clear(torch.nan if state == BAD else 0.0)

    def decode(self, payloads: list[Tensor], units: Tensor, out: Tensor, *, factor: float = 1.0) -> None:
        """See `SparseCodec.decode`."""
        for unit in _units(units, out, None, min(payloads, key=Tensor.numel), None):
            _put(out, unit.gradient, unit.place(out.device), _sum(payloads, unit, factor))

    def reduce(self, payloads: list[Tensor], units: Tensor, payload: Tensor, residual: Tensor) -> None:
        """See `SparseCodec.reduce`."""
        shortest = min((*payloads, payload), key=Tensor.numel)
        for unit in _units(units, None, residual, shortest, None):
            total = _sum(payloads, unit, 1.0)
            code = _code(payload, unit)
            if bool(total.isnan().any()):
                code.clear(torch.nan)
                continue
            chosen = largest(total, unit.sent)
            total[chosen] -= _write(code, total, chosen)
            place = unit.place(payload.device)
            _put(residual, unit.flat, place, _take(residual, unit.flat, unit.numel, place) + total)


def largest(v: Tensor, count: int) -> Tensor:
    """Where the `count` largest magnitudes are, ascending, int64 [count]; of equal ones the first."""
    if count >= v.numel():
        return torch.arange(v.numel(), device=v.device)
    magnitude, found = v.abs(), None
    if (
        not v.is_cuda and count > 0 and v.numel() > 64 * _SAMPLED
    ):  # an exact selection of all: 10 times slower
        sample = magnitude[::_SAMPLED]
        guess = sample.topk(min(count * 3 // (2 * _SAMPLED) + 2, len(sample)), sorted=False).values.min()
        found = (magnitude >= guess).nonzero().flatten()
        if len(found) < count:
            found = None
        else:
            magnitude = magnitude[found]
    least = magnitude.topk(count, sorted=False).values.min()
    above = (magnitude > least).nonzero().flatten()
    equal = (magnitude == least).nonzero().flatten()[: count - len(above)]
    chosen = torch.cat((above, equal)).sort().values
    return chosen if found is None else found[chosen]


def _write(code: _Code, v: Tensor, chosen: Tensor) -> Tensor:
    """Write the chosen numbers of v [E], at ascending places [k]; returns what is written of them."""
    numbers = v[chosen]
    exponent = (numbers.abs().amax().view(torch.int32) & 0x7F800000).view(torch.float32)
    scale = (exponent * 2.0**-14).clamp(min=_SMALLEST_SCALE)
    code.clear()
    code.scale.copy_(scale)
    code.values.copy_(numbers * scale.reciprocal())
    most = 0xFF if code.gaps.dtype == torch.uint8 else 0xFFFF
    between = torch.diff(chosen, prepend=chosen.new_full((1,), -1)) - 1
    full = between.div(most, rounding_mode="floor")
    at = torch.arange(len(chosen), device=v.device) + full.cumsum(0)
    code.gaps[at] = (between - full * most).to(code.gaps.dtype)
    return code.values.float() * scale


def _sum(payloads: list[Tensor], unit: _Unit, factor: float) -> Tensor:
    """What the payloads stand for, float32 [E]; NaN if one is bad."""
    total = torch.zeros(unit.numel, device=payloads[0].device)
    for payload in payloads:
        code = _code(payload, unit)
        most = 0xFF if code.gaps.dtype == torch.uint8 else 0xFFFF
        codes = code.gaps.to(torch.int64) & most
        is_number = codes != most
        places = ((codes + is_number).cumsum(0) - 1)[is_number]
        if len(places) > unit.sent or (len(places) and int(places[-1]) >= unit.numel):
            raise IndexError("a sparse payload leaves its parameter")
        total[places] += code.values[: len(places)].float() * (code.scale * factor)
        if bool(code.scale.isnan()):
            total.fill_(torch.nan)
    return total


def _take(flat: Tensor, start: int, numel: int, place: Tensor | None) -> Tensor:
    return flat[start : start + numel].clone() if place is None else flat[start + place]


def _put(flat: Tensor, start: int, place: Tensor | None, v: Tensor) -> None:
    if place is None:
        flat[start : start + v.numel()] = v
    else:
        flat[start + place] = v


def _code(payload: Tensor, unit: _Unit) -> _Code:
    width, codes = gaps(unit.numel, unit.sent)
    whole = payload[unit.payload : unit.payload + payload_bytes(unit.numel, unit.sent)]
    values_end = _HEAD + 2 * unit.sent
    coded = whole[values_end : values_end + width * codes]
    return _Code(
        whole,
        whole[:4].view(torch.float32)[0],
        whole[_HEAD:values_end].view(torch.float16),
        coded if width == 1 else coded.view(torch.int16),
    )


def _units(
    units: Tensor, gradient: Tensor | None, flat: Tensor | None, payload: Tensor, num_parameters: int | None
) -> list[_Unit]:
    """The rows. Raises: IndexError where one leaves a tensor."""
    rows = [_Unit(*row) for row in units.tolist()]
    for unit in rows:
        last = unit.numel - 1
        end = last + (last // TILE) * (unit.stride - 1) * TILE + 1
        if (
            min(unit) < 0
            or unit.payload % 8
            or not 0 < unit.sent <= unit.numel
            or (gradient is not None and unit.gradient + end > gradient.numel())
            or (flat is not None and unit.flat + end > flat.numel())
            or unit.payload + payload_bytes(unit.numel, unit.sent) > payload.numel()
            or (num_parameters is not None and unit.parameter >= num_parameters)
        ):
            raise IndexError("a table of units leaves its gradient, flat space, payload or states")
    return rows
