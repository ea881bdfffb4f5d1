"""The compiled kernels behind the interfaces of `eager`, for float32 on a CPU.

Called through ctypes, which lets other Python threads run meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from collections.abc import Mapping
from ctypes import c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from eagleray.compression.kernels import build, eager, passes

_KINDS = {"raw": 0, "fp16": 1, "bf16": 2, "int8": 3, "int4": 4, "sign": 5}
_OUT_OF_BOUNDS = -2
_SIGNATURES = {
    "encode": [c_int64, c_int64, *[c_void_p] * 4, c_int64, c_void_p, c_void_p, c_float, c_float, c_float],
    "decode": [c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_float],
    "reduce": [*[c_int64] * 2, c_void_p, c_int64, c_void_p, c_int64, *[c_void_p] * 3, c_float],
}
_SIGNATURES_WITHOUT_RESULT = {
    "used": [c_void_p, c_void_p, c_int64, c_void_p],
    "absmax": [c_void_p, c_void_p, c_int64, c_void_p],
}
_lock = threading.Lock()
_loaded: list[ctypes.CDLL | None] = []
_builder: list[threading.Thread] = []


def is_wanted(device: torch.device | str) -> bool:
    """Whether compiled kernels could work there, and nobody has asked for torch operations in their place."""
    return torch.device(device).type == "cpu" and os.environ.get("EAGLERAY_KERNELS") != "eager"


def begin() -> bool:
    """Whether `load` returns at once; where it has to compile first, that goes on in the background now.

    A process that ends earlier waits for it: some seconds once on a machine, not again at each short run.
    """
    if _loaded:
        return True
    if _builder:
        return not _builder[0].is_alive()
    if not build.has_to_compile():
        load()
        return True
    _builder.append(threading.Thread(target=load, name="eagleray-kernels"))
    _builder[0].start()
    return False


def load() -> ctypes.CDLL | None:
    """The library, built if need be; None where that fails, which is said once in a process."""
    with _lock:
        if not _loaded:
            try:
                _loaded.append(_open())
            except (build.BuildError, OSError) as error:
                _loaded.append(None)
                warnings.warn(
                    f"gradients are compressed by torch operations, some 10 times slower: {error}",
                    stacklevel=3,
                )
        return _loaded[0]


def _open() -> ctypes.CDLL:
    """Raises: BuildError, OSError."""
    opened = ctypes.CDLL(str(build.library()))
    bind(opened, _SIGNATURES, c_int64)
    bind(opened, _SIGNATURES_WITHOUT_RESULT, None)
    return opened


def bind(functions: ctypes.CDLL, signatures: Mapping[str, list[Any]], result: Any) -> None:
    """Say what the functions of these names take and return."""
    for name, arguments in signatures.items():
        function = getattr(functions, f"eagleray_{name}")
        function.argtypes, function.restype = arguments, result


class NativeCodec:
    """One of the codecs: see `codec.Codec`. Tensors are contiguous and on the CPU, numbers float32."""

    def __init__(self, functions: ctypes.CDLL, reference: eager.EagerCodec):
        self._functions, self._reference = functions, reference
        self.name, self.block = reference.name, reference.block
        self.keeps_residual = reference.keeps_residual
        self._kind = _KINDS[reference.name]

    def payload_bytes(self, numel: int) -> int:
        """Bytes of a tile of `numel` elements, a multiple of 8."""
        return self._reference.payload_bytes(numel)

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
        """See `Codec.encode`. Raises: IndexError, TypeError."""
        return self._done(
            self._functions.eagleray_encode(
                self._kind,
                self.block,
                address(source),
                address(residual),
                address(payload, torch.uint8),
                address(tiles, torch.int64),
                len(tiles),
                address(used, torch.uint8),
                sizes(source, residual, payload, used),
                gain_in,
                keep,
                gain_out,
            )
        )

    def decode(
        self, payload: Tensor, tiles: Tensor, out: Tensor, *, accumulate: bool = False, factor: float = 1.0
    ) -> None:
        """See `Codec.decode`. Raises: IndexError, TypeError."""
        self._done(
            self._functions.eagleray_decode(
                self._kind,
                self.block,
                address(payload, torch.uint8),
                address(tiles, torch.int64),
                len(tiles),
                address(out),
                sizes(out, None, payload, None),
                accumulate,
                factor,
            )
        )

    def reduce(
        self,
        payloads: list[Tensor],
        tiles: Tensor,
        payload: Tensor,
        residual: Tensor | None = None,
        *,
        gain_out: float = 1.0,
    ) -> int:
        """See `Codec.reduce`. Raises: IndexError, TypeError."""
        shortest = min((*payloads, payload), key=Tensor.numel)
        return self._done(
            self._functions.eagleray_reduce(
                self._kind,
                self.block,
                addresses(payloads),
                len(payloads),
                address(tiles, torch.int64),
                len(tiles),
                address(payload, torch.uint8),
                address(residual),
                sizes(None, residual, shortest, None),
                gain_out,
            )
        )

    @staticmethod
    def _done(result: int) -> int:
        if result == _OUT_OF_BOUNDS:
            raise IndexError("a table of tiles leaves its gradient, flat space, payload or used flags")
        return result


class NativePasses:
    """See `passes.Passes`. Tensors are contiguous and on the CPU, numbers float32."""

    def __init__(self, functions: ctypes.CDLL):
        self._functions = functions

    def used(self, source: Tensor, spans: Tensor) -> Tensor:
        """See `Passes`. Raises: IndexError, TypeError."""
        flags = torch.empty(len(spans), dtype=torch.uint8)
        self._functions.eagleray_used(*_spans(source, spans), flags.data_ptr())
        return flags

    def absmax(self, source: Tensor, spans: Tensor) -> Tensor:
        """See `Passes`. Raises: IndexError, TypeError."""
        out = torch.empty(len(spans))
        self._functions.eagleray_absmax(*_spans(source, spans), out.data_ptr())
        return out


def _spans(source: Tensor, spans: Tensor) -> tuple[int | None, int | None, int]:
    """Raises: IndexError, TypeError."""
    passes.check_spans(source, spans)
    return address(source), address(spans, torch.int64), len(spans)


def address(tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
    """Where a tensor's numbers are, None for none. Raises: TypeError for another type, device or layout."""
    if tensor is None:
        return None
    if tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise TypeError(
            f"the compiled codecs take contiguous {dtype} on the CPU, not {tensor.dtype} on {tensor.device} "
            f"with strides {tensor.stride()}"
        )
    return tensor.data_ptr()


def addresses(payloads: list[Tensor]) -> ctypes.Array[c_void_p]:
    """Where several payloads are. Raises: TypeError: see `address`."""
    return (c_void_p * len(payloads))(*(address(each, torch.uint8) for each in payloads))


def sizes(*tensors: Tensor | None) -> ctypes.Array[c_int64]:
    """Elements of gradient, flat space, payload and flags of the parameters; -1 where there is none."""
    return (c_int64 * 4)(*(-1 if tensor is None else tensor.numel() for tensor in tensors))
