"""The compiled codes of int8_ring behind the interface of `ring`, for float32 on a CPU."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor

from eagleray.compression.kernels.native import address, bind
from eagleray.compression.kernels.ring import check

_SIGNATURES = {
    "ring_encode": [*[c_void_p] * 4, *[c_int64] * 2, *[c_float] * 3],
    "ring_decode": [*[c_void_p] * 2, *[c_int64] * 2, *[c_void_p] * 2],
}


class NativeRing:
    """See `ring.RingCodec`. Tensors are contiguous and on the CPU."""

    def __init__(self, functions: ctypes.CDLL):
        bind(functions, _SIGNATURES, None)
        self._functions = functions

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
        """See `RingCodec.encode`. Raises: IndexError, TypeError."""
        check(block, quanta, source, residual, codes)
        self._functions.eagleray_ring_encode(
            address(source),
            address(residual),
            address(quanta),
            address(codes, torch.int8),
            source.numel(),
            block,
            levels,
            gain,
            1 / gain,
        )

    def decode(self, codes: Tensor, quanta: Tensor, out: Tensor, *, block: int) -> Tensor:
        """See `RingCodec.decode`. Raises: IndexError, TypeError."""
        check(block, quanta, codes, out)
        most = torch.empty_like(quanta)
        self._functions.eagleray_ring_decode(
            address(codes, torch.int8),
            address(quanta),
            codes.numel(),
            block,
            address(out),
            address(most),
        )
        return most
