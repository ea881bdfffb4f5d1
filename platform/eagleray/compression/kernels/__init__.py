"""Kernels of the codecs: compiled for this machine's CPU, or torch operations that give the same bits.

The first process on a machine compiles them, which takes 6 s of a core. Nobody waits for that: torch
operations do the work meanwhile, and whoever holds a codec has the compiled one as soon as it is there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from eagleray.compression.codec import Codec
from eagleray.compression.kernels import eager, native
from eagleray.compression.kernels.native_ring import NativeRing
from eagleray.compression.kernels.native_sparse import NativeSparse
from eagleray.compression.kernels.passes import EagerPasses, Passes
from eagleray.compression.kernels.ring import EagerRing, RingCodec
from eagleray.compression.kernels.sparse import EagerSparse, SparseCodec

CODECS = ("raw", "fp16", "bf16", "int8", "int4", "sign")
BLOCKS = {"int8": 256, "int4": 128, "sign": 256}
"""Default size of a block, elements."""
Kernels = TypeVar("Kernels")


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
    if dtype != torch.float32:
        return reference
    return _made(device, lambda found: reference if found is None else native.NativeCodec(found, reference))


def passes_for(device: torch.device | str = "cpu") -> Passes:
    """Selection, absolute maxima and checks of float32 tensors on `device`."""
    return _made(device, lambda found: EagerPasses() if found is None else native.NativePasses(found))


def sparse_for(device: torch.device | str = "cpu") -> SparseCodec:
    """The codec of sparse payloads for numbers on `device`."""
    return _made(device, lambda found: EagerSparse() if found is None else NativeSparse(found))


def ring_for(device: torch.device | str = "cpu") -> RingCodec:
    """The codec of numbers under scales from before, on `device`."""
    return _made(device, lambda found: EagerRing() if found is None else NativeRing(found))


def is_building() -> bool:
    """Whether kernels for the CPU that this process has asked for are being compiled."""
    return bool(native._builder) and not native.begin()


def wait() -> None:
    """Return when the compiled kernels are there, or cannot be had: for measurements."""
    native.load()


def _made(device: torch.device | str, make: Callable[[ctypes.CDLL | None], Kernels]) -> Kernels:
    """What `make` makes of the compiled kernels, or of None.

    None: they are not for this device, not wanted, or not to be had.
    """
    if not native.is_wanted(device):
        return make(None)
    return make(native.load()) if native.begin() else cast(Kernels, _Late(make))


class _Late:
    """Stands for the torch operations until the library is built, and for the compiled ones from then on."""

    def __init__(self, make: Callable[[ctypes.CDLL | None], Any]):
        self._make, self._made, self._is_final = make, make(None), False

    def __getattr__(self, name: str) -> Any:
        if not self._is_final and native.begin():
            self._made, self._is_final = self._make(native.load()), True
        return getattr(self._made, name)
