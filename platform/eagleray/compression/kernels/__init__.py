"""Kernels of the codecs: compiled for this machine's CPU, or torch operations that give the same bits."""

from __future__ import annotations

import ctypes
import os

import torch

from eagleray.compression.codec import Codec
from eagleray.compression.kernels import eager, native
from eagleray.compression.kernels.native_sparse import NativeSparse
from eagleray.compression.kernels.passes import EagerPasses, Passes
from eagleray.compression.kernels.sparse import EagerSparse, SparseCodec

CODECS = ("raw", "fp16", "bf16", "int8", "int4", "sign")
BLOCKS = {"int8": 256, "int4": 128, "sign": 256}
"""Default size of a block, elements."""


def codec(
    name: str,
    block: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Codec:
    """The codec of that name for numbers on `device`.

    Args:
        name: one of CODECS.
        block: elements that share a scale, a power of two that divides TILE; None: BLOCKS. raw, fp16 and bf16
            have no blocks, and ignore it.
        device: where source, residual and payload are.
        dtype: the source's type, which raw keeps; all others take float32.

    Raises:
        ValueError: an unknown name, or a block that does not divide TILE into bytes.
    """
    if name not in CODECS:
        raise ValueError(f"there is no codec {name!r}; choose from {', '.join(CODECS)}")
    size = block or BLOCKS.get(name, 1)
    if name in BLOCKS and (size & (size - 1) or not 8 <= size <= 4096):
        raise ValueError(f"{name}: a block of {size}; it has to be a power of two from 8 to 4096")
    reference = eager.make(name, size, dtype)
    functions = _functions(torch.device(device)) if dtype == torch.float32 else None
    return reference if functions is None else native.NativeCodec(functions, reference)


def passes_for(device: torch.device | str = "cpu") -> Passes:
    """Selection, absolute maxima and checks of float32 tensors on `device`."""
    functions = _functions(torch.device(device))
    return EagerPasses() if functions is None else native.NativePasses(functions)


def sparse_for(device: torch.device | str = "cpu") -> SparseCodec:
    """The codec of sparse payloads for numbers on `device`."""
    functions = _functions(torch.device(device))
    return EagerSparse() if functions is None else NativeSparse(functions)


def _functions(device: torch.device) -> ctypes.CDLL | None:
    """The compiled kernels, or None where they are not for this device, not wanted or not to be had."""
    if device.type != "cpu" or os.environ.get("EAGLERAY_KERNELS") == "eager":
        return None
    return native.load()
