"""The compiled sparse codec behind the interface of `sparse`, for float32 on a CPU."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor

from eagleray.compression.kernels.native import address, addresses, bind, sizes

_SIGNATURES = {
    "sparse_encode": [c_void_p, c_void_p, c_int64, *[c_void_p] * 6, c_float, c_float],
    "sparse_decode": [c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p, c_float],
    "sparse_reduce": [c_void_p, c_int64, c_void_p, c_int64, *[c_void_p] * 3],
}


class NativeSparse:
    """See `sparse.SparseCodec`. Tensors are contiguous and on the CPU."""

    def __init__(self, functions: ctypes.CDLL):
        bind(functions, _SIGNATURES, c_int64)
        self._functions = functions

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
        """See `SparseCodec.encode`. Raises: IndexError, TypeError."""
        if len(thresholds) < len(units) or (momentum is not None and momentum.numel() < residual.numel()):
            raise IndexError("thresholds are fewer than units, or the momentum is shorter than the residual")
        _done(
            self._functions.eagleray_sparse_encode(
                address(gradient),
                address(units, torch.int64),
                len(units),
                address(payload, torch.uint8),
                address(residual),
                address(momentum),
                address(thresholds),
                address(states, torch.uint8),
                sizes(gradient, residual, payload, states),
                gain,
                beta,
            )
        )

    def decode(self, payloads: list[Tensor], units: Tensor, out: Tensor, *, factor: float = 1.0) -> None:
        """See `SparseCodec.decode`. Raises: IndexError, TypeError."""
        _done(
            self._functions.eagleray_sparse_decode(
                addresses(payloads),
                len(payloads),
                address(units, torch.int64),
                len(units),
                address(out),
                sizes(out, None, min(payloads, key=Tensor.numel), None),
                factor,
            )
        )

    def reduce(self, payloads: list[Tensor], units: Tensor, payload: Tensor, residual: Tensor) -> None:
        """See `SparseCodec.reduce`. Raises: IndexError, TypeError."""
        _done(
            self._functions.eagleray_sparse_reduce(
                addresses(payloads),
                len(payloads),
                address(units, torch.int64),
                len(units),
                address(payload, torch.uint8),
                address(residual),
                sizes(None, residual, min((*payloads, payload), key=Tensor.numel), None),
            )
        )


def _done(result: int) -> None:
    if result < 0:
        raise IndexError("a table of units leaves its tensors, or a sparse payload its parameter")
