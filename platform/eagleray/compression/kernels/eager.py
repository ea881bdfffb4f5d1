"""The codecs as torch operations: the reference, and what runs on CUDA and where there is no compiler.

The kernels in codecs.cpp give the same bits (but which NaN a NaN is). What that rests on:
- float32 throughout, each operation rounded by itself: no fused multiply-add, so never `alpha=` of torch.add;
- a block's scale is bfloat16: absmax * (1 / L) rounded up, at least 2^-126 unless the block is all zero;
  codes are v * (1 / scale), rounded half to even, in [-L, L] with L = 127 or 7, and rounding the scale up
  keeps them from clipping. The scale of `sign`, the mean magnitude, is rounded to nearest;
- sums within a block run as a tree of halves, x[i] + x[i + B/2], however wide the machine's registers are;
- a block is not finite if it has a NaN, an infinity or a number of 2^127 or more (scale * code could
  overflow), or, in `sign`, magnitudes whose sum is that large.

Bytes of a tile: its blocks' scales, the codes block by block, zeros up to a multiple of 8 bytes. In a block
of b elements, int4 puts elements j and j + ceil(b/2) into byte j (the first into the low half), sign puts
element k * ceil(b/8) + j into bit k of byte j (1: negative).

Shapes: k tiles of a run (`runs`), m blocks of a tile, b elements of a block (B, or fewer in a parameter's
last), c bytes of a block's codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from eagleray.compression.kernels.runs import ALIGN, Run, check, runs_of
from eagleray.compression.layout import FLAT, GRADIENT, NUMEL, PARAMETER, PAYLOAD

LIMIT = 2.0**127
"""What is not smaller is not finite."""
SMALLEST_SCALE = 2.0**-126
"""Smallest normal float32: a smaller scale's reciprocal would overflow."""
_ROUND = 12582912.0
"""1.5 * 2^23: x + _ROUND - _ROUND is x rounded half to even for |x| < 2^22, and never -0."""

_NAN = 0x7FC0
"""bfloat16 NaN."""


class _Piece(NamedTuple):
    """A run's blocks of one size: where in the tile they start, and how many of which size."""

    start: int
    blocks: int
    size: int
    scale_at: int
    code_at: int


class EagerCodec:
    """What the codecs share: see `codec.Codec` for the methods. Works on the tensors' own device."""

    name: str
    block: int
    keeps_residual: bool

    def payload_bytes(self, numel: int) -> int:
        """Bytes of a tile of `numel` elements, a multiple of ALIGN."""
        return -(-self._used_bytes(numel) // ALIGN) * ALIGN

    def encode(
        self,
        source: Tensor,
        tiles: Tensor,
        payload: Tensor,
        residual: Tensor | None = None,
        *,
        gain_in: float = 1.0,
        keep: float = 0.0,
        gain_out: float = 1.0,
        used: Tensor | None = None,
    ) -> int:
        """See `Codec.encode`. Raises: IndexError."""
        check(tiles, self._sizes(tiles), [payload], gradient=source, flat=residual, used=used)
        bad: list[tuple[Run, Tensor]] = []
        for run in runs_of(tiles, used, source.device):
            code = run.view(payload, PAYLOAD, self.payload_bytes(run.numel))
            if not run.used:
                code.zero_()
                continue
            value = self._widen(run.view(source, GRADIENT, run.numel))
            kept = None if residual is None else run.view(residual, FLAT, run.numel)
            if kept is not None:
                value = value + kept * gain_in
            bad.append((run, self._write(value, code, kept, keep, gain_out)))
        return _first_bad(tiles, bad)

    def decode(
        self, payload: Tensor, tiles: Tensor, out: Tensor, *, accumulate: bool = False, factor: float = 1.0
    ) -> None:
        """See `Codec.decode`. Raises: IndexError."""
        check(tiles, self._sizes(tiles), [payload], gradient=out)
        for run in runs_of(tiles, None, out.device):
            value = self._read(run.view(payload, PAYLOAD, self.payload_bytes(run.numel)), run.numel)
            value = value if factor == 1.0 else value * factor
            target = run.view(out, GRADIENT, run.numel)
            target.add_(value) if accumulate else target.copy_(value)

    def reduce(
        self,
        payloads: list[Tensor],
        tiles: Tensor,
        payload: Tensor,
        residual: Tensor | None = None,
        *,
        gain_out: float = 1.0,
    ) -> int:
        """See `Codec.reduce`. Raises: IndexError."""
        check(tiles, self._sizes(tiles), [*payloads, payload], flat=residual)
        bad: list[tuple[Run, Tensor]] = []
        for run in runs_of(tiles, None, payload.device):
            width = self.payload_bytes(run.numel)
            views = [run.view(each, PAYLOAD, width) for each in payloads]
            value = self._widen(self._read(views[0], run.numel))
            for each in views[1:]:
                value = value + self._read(each, run.numel)
            kept = None if residual is None else run.view(residual, FLAT, run.numel)
            code = run.view(payload, PAYLOAD, width)
            bad.append((run, self._write(value * (1.0 / len(payloads)), code, kept, 1.0, gain_out)))
        return _first_bad(tiles, bad)

    def _sizes(self, tiles: Tensor) -> Tensor:
        """Bytes of each tile, int64 [K]."""
        numels, which = tiles[:, NUMEL].unique(return_inverse=True)
        return torch.tensor([self.payload_bytes(n) for n in numels.tolist()], dtype=torch.int64)[which]

    def _used_bytes(self, numel: int) -> int:
        """Bytes of a tile without those that fill up."""
        raise NotImplementedError

    def _widen(self, value: Tensor) -> Tensor:
        """The value in the type that the codec computes in."""
        return value

    def _write(
        self, value: Tensor, code: Tensor, residual: Tensor | None, keep: float, gain: float
    ) -> Tensor:
        """Encode value [k, E] into code [k, P]; update the residual [k, E]; which tiles are bad, bool [k]."""
        raise NotImplementedError

    def _read(self, code: Tensor, numel: int) -> Tensor:
        """What code [k, P] stands for, [k, E]."""
        raise NotImplementedError


class FloatCodec(EagerCodec):
    """Numbers in a shorter float type, or as they are ("raw": of any float type; only then is the source's).

    Each number is a block of its own: one that is not finite in that type is sent as it is.
    """

    block = 1
    keeps_residual = False

    def __init__(self, name: str, dtype: torch.dtype):
        self.name, self.dtype = name, dtype
        self._sum_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def _used_bytes(self, numel: int) -> int:
        return numel * self.dtype.itemsize

    def _widen(self, value: Tensor) -> Tensor:
        return value.to(self._sum_dtype)

    def _write(
        self, value: Tensor, code: Tensor, residual: Tensor | None, keep: float, gain: float
    ) -> Tensor:
        size = self._used_bytes(value.shape[1])
        code[:, size:].zero_()
        sent = value.to(self.dtype)
        good = sent.abs().amax(dim=1) < torch.inf
        if self.name != "raw" and (code.is_cuda or not bool(good.all())):
            # Which NaN a conversion gives depends on the machine, and on torch's vector width.
            sent = torch.where(sent.isnan(), torch.full_like(sent, torch.nan), sent)
        code[:, :size].view(self.dtype).copy_(sent)
        if residual is not None:
            lost = residual * keep + (value - sent.to(self._sum_dtype)) * gain
            residual.copy_(torch.where(sent.isfinite(), lost, residual))
        return ~good

    def _read(self, code: Tensor, numel: int) -> Tensor:
        return code[:, : self._used_bytes(numel)].view(self.dtype).to(self._sum_dtype)


class BlockCodec(EagerCodec):
    """Codes of a few bits with a scale for each block."""

    keeps_residual = True
    per_byte: int
    """Codes in a byte."""

    def __init__(self, block: int):
        self.block = block

    def _used_bytes(self, numel: int) -> int:
        full, tail = divmod(numel, self.block)
        codes = full * (self.block // self.per_byte) + -(-tail // self.per_byte)
        return 2 * (full + (tail > 0)) + codes

    def _pieces(self, numel: int) -> Iterator[_Piece]:
        full, tail = divmod(numel, self.block)
        code_at = 2 * (full + (tail > 0))
        if full:
            yield _Piece(0, full, self.block, 0, code_at)
        if tail:
            code_at += full * (self.block // self.per_byte)
            yield _Piece(full * self.block, 1, tail, 2 * full, code_at)

    def _views(self, code: Tensor, piece: _Piece) -> tuple[Tensor, Tensor]:
        """The piece's scales, bfloat16 [k, m], and codes, uint8 [k, m, c]."""
        width = -(-piece.size // self.per_byte)
        scales = code[:, piece.scale_at : piece.scale_at + 2 * piece.blocks].view(torch.bfloat16)
        codes = code[:, piece.code_at : piece.code_at + width * piece.blocks]
        return scales, codes.unflatten(1, (piece.blocks, width))

    def _write(
        self, value: Tensor, code: Tensor, residual: Tensor | None, keep: float, gain: float
    ) -> Tensor:
        bad = torch.zeros(len(code), dtype=torch.bool, device=code.device)
        code[:, self._used_bytes(value.shape[1]) :].zero_()
        for piece in self._pieces(value.shape[1]):
            scales, codes = self._views(code, piece)
            part = slice(piece.start, piece.start + piece.blocks * piece.size)
            v = value[:, part].unflatten(1, (piece.blocks, piece.size))
            scale, good = self._scale(v)
            all_good = not code.is_cuda and bool(good.all())  # no wait for the device
            if not all_good:
                v = torch.where(good.unsqueeze(-1), v, torch.zeros_like(v))
                scale = torch.where(good, scale, torch.zeros_like(scale))
            decoded = self._quantise(v, scale.unsqueeze(-1), codes)
            bits = scale.view(torch.int32) >> 16  # not .to(bfloat16): its NaN depends on the vector width
            scales.view(torch.int16).copy_(bits if all_good else torch.where(good, bits, _NAN))
            if residual is not None:
                kept = residual[:, part].unflatten(1, (piece.blocks, piece.size))
                lost = kept * keep + (v - decoded) * gain
                kept.copy_(lost if all_good else torch.where(good.unsqueeze(-1), lost, kept))
            if not all_good:
                bad |= ~good.all(dim=1)
        return bad

    def _read(self, code: Tensor, numel: int) -> Tensor:
        parts = []
        for piece in self._pieces(numel):
            scales, codes = self._views(code, piece)
            parts.append(self._dequantise(codes, piece.size).mul_(scales.float().unsqueeze(-1)).flatten(1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _scale(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of v [k, m, b], float32 [k, m] with a bfloat16's bits; and which blocks are finite, bool."""
        raise NotImplementedError

    def _quantise(self, v: Tensor, scale: Tensor, codes: Tensor) -> Tensor:
        """Write the codes of v [k, m, b] with scale [k, m, 1]; returns what they stand for, [k, m, b]."""
        raise NotImplementedError

    def _dequantise(self, codes: Tensor, size: int) -> Tensor:
        """Codes without their scale, float32 [k, m, b]."""
        raise NotImplementedError


class Int8(BlockCodec):
    """One byte for each number: codes -127 .. 127."""

    name, per_byte, levels = "int8", 1, 127

    def __init__(self, block: int = 256):
        super().__init__(block)

    def _scale(self, v: Tensor) -> tuple[Tensor, Tensor]:
        most = v.abs().amax(dim=-1)
        scale = round_up((most * (1.0 / self.levels)).clamp_(min=SMALLEST_SCALE))
        return torch.where(most > 0, scale, torch.zeros_like(scale)), most < LIMIT

    def _quantise(self, v: Tensor, scale: Tensor, codes: Tensor) -> Tensor:
        inverse = torch.where(scale > 0, scale.reciprocal(), torch.zeros_like(scale))
        rounded = (v * inverse).add_(_ROUND).sub_(_ROUND)
        self._pack(rounded.to(torch.int8), codes)
        return rounded.mul_(scale)

    def _pack(self, levels: Tensor, codes: Tensor) -> None:
        """Write int8 levels [k, m, b]."""
        codes.view(torch.int8).copy_(levels)

    def _dequantise(self, codes: Tensor, size: int) -> Tensor:
        return codes.view(torch.int8).float()


class Int4(Int8):
    """Half a byte: codes -7 .. 7."""

    name, per_byte, levels = "int4", 2, 7

    def __init__(self, block: int = 128):
        super().__init__(block)

    def _pack(self, levels: Tensor, codes: Tensor) -> None:
        half = codes.shape[-1]
        bits = levels.view(torch.uint8)
        codes.copy_(bits[..., :half] & 15)
        codes[..., : bits.shape[-1] - half] |= bits[..., half:] << 4

    def _dequantise(self, codes: Tensor, size: int) -> Tensor:
        signed = codes.view(torch.int8)
        return torch.cat(((signed << 4) >> 4, (signed >> 4)[..., : size - codes.shape[-1]]), dim=-1).float()


class Sign(BlockCodec):
    """One bit, and the block's mean magnitude. It cannot say 0 but for a whole block."""

    name, per_byte = "sign", 8

    def __init__(self, block: int = 256):
        super().__init__(block)

    def _scale(self, v: Tensor) -> tuple[Tensor, Tensor]:
        total = v.abs()
        if v.shape[-1] < self.block:
            total = torch.nn.functional.pad(total, (0, self.block - v.shape[-1]))
        while total.shape[-1] > 1:
            half = total.shape[-1] // 2
            total = total[..., :half] + total[..., half:]
        total = total.squeeze(-1)
        return (total * (1.0 / v.shape[-1])).to(torch.bfloat16).float(), total < LIMIT

    def _quantise(self, v: Tensor, scale: Tensor, codes: Tensor) -> Tensor:
        signs = v.contiguous().view(torch.int32) >> 31
        size, width = v.shape[-1], codes.shape[-1]
        bits = signs.to(torch.uint8)
        if size % 8:
            bits = torch.nn.functional.pad(bits, (0, 8 * width - size))
        bits = bits.unflatten(-1, (8, width))
        packed = bits[..., 0, :] & 1
        for k in range(1, 8):
            packed |= bits[..., k, :] & (1 << k)
        codes.copy_(packed)
        return signs.mul_(2).add_(1).float().mul_(scale)

    def _dequantise(self, codes: Tensor, size: int) -> Tensor:
        bits = torch.cat([codes >> k for k in range(8)], dim=-1)[..., :size]
        return ((bits & 1).mul_(-2).add_(1)).view(torch.int8).float()


def round_up(positive: Tensor) -> Tensor:
    """The next bfloat16 that is not smaller, as float32; positive numbers, infinity stays."""
    return ((positive.view(torch.int32) + 0xFFFF) & -0x10000).view(torch.float32)


def _first_bad(tiles: Tensor, bad: list[tuple[Run, Tensor]]) -> int:
    """The lowest parameter of a bad tile, or -1; waits for the device once."""
    if not bad:
        return -1
    flags = torch.cat([flags for _, flags in bad]).cpu()
    if not bool(flags.any()):
        return -1
    rows = torch.cat([torch.arange(run.first, run.first + run.tiles) for run, _ in bad])
    return int(tiles[rows[flags], PARAMETER].min())


def make(name: str, block: int, dtype: torch.dtype) -> EagerCodec:
    """The reference codec of that name; `block` and `dtype` as in `kernels.codec`."""
    blocked: dict[str, type[Int8 | Int4 | Sign]] = {"int8": Int8, "int4": Int4, "sign": Sign}
    if name in blocked:
        return blocked[name](block)
    return FloatCodec(name, {"raw": dtype, "fp16": torch.float16, "bf16": torch.bfloat16}[name])
