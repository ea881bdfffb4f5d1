"""Named tensors <-> the bytes of a safetensors file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from eagleray.packaging import manifest as manifests
from eagleray.packaging.manifest import Manifest
from eagleray.packaging.storage import Folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SUFFIX = ".safetensors"

_ALIGNED_BYTES = 64
"""Where the first tensor begins: every view is then aligned for its dtype, and for vector loads."""
_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint32": "U32",
    "int32": "I32",
    "float32": "F32",
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
}
"""Torch's names and the format's."""

_Layout: TypeAlias = "tuple[tuple[str, torch.dtype, torch.Size], ...]"


class Image:
    """A safetensors file in memory, to be filled anew as often as its tensors change.

    The memory stays, and so do its pages: filling it costs one copy and no allocation. It is page-locked
    where a tensor is on a CUDA device, so that the copy runs at the bus's full speed.

    The format (8 bytes of length, JSON header, the tensors' bytes without gaps) is written here, since its
    library builds every file in new memory, ten times as slowly.
    Source: github.com/huggingface/safetensors, README, "Format".

    Args:
        tensors: Of any device; views and shared storage are fine, each goes in whole. Copied.

    Raises:
        TypeError: a tensor is sparse, quantised, on `meta` or of a dtype that the format lacks.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        import torch

        self._layout = _layout(tensors)
        header, spans = _header(self._layout)
        self._devices = {tensor.device for tensor in tensors.values() if tensor.is_cuda}
        size_bytes = max((stop for _, stop in spans), default=len(header))
        self._memory = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=bool(self._devices))
        self._memory[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        self._views = {
            name: self._memory[start:stop].view(dtype).view(shape)
            for (name, dtype, shape), (start, stop) in zip(self._layout, spans, strict=True)
        }
        self.fill(tensors)

    @property
    def data(self) -> memoryview:
        """The file; not copied, so it changes with the next `fill`."""
        return self._memory.numpy().data

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether `tensors` have the names, dtypes and shapes of this image. Raises: TypeError, as above."""
        is_same = tensors.keys() == self._views.keys() and all(
            _is_like(tensors[name], view) for name, view in self._views.items()
        )
        return is_same or _layout(tensors) == self._layout  # which says what cannot be saved

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors`, which must fit, into the file; when this returns they may change again.

        On any thread: the copies come after what CUDA's default stream has been given before.
        """
        import torch

        if not self._views:
            return
        with torch.no_grad():  # all in one call: by name it takes three times as long
            torch._foreach_copy_(
                list(self._views.values()),
                [tensors[name] for name in self._views],
                non_blocking=bool(self._devices),
            )
        for device in self._devices:  # by name: a thread has a current device of its own
            torch.cuda.synchronize(device)


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """The safetensors file of `tensors`. Raises: TypeError, as `Image`."""
    return bytes(Image(tensors).data)


def read_tensors(folder: Folder, manifest: Manifest, name: str) -> dict[str, Tensor]:
    """The tensors of `<name>.safetensors`, on the CPU. Raises: DamageError where the file differs."""
    from safetensors.torch import load

    file = name + SUFFIX
    return load(manifest.check(file, manifests.read(folder, file)))


def _is_like(tensor: Tensor, view: Tensor) -> bool:
    """Whether `tensor` is as the one of which `view` is the place; a step waits for this."""
    is_dense = tensor.layout == view.layout and not tensor.is_quantized and not tensor.is_meta
    return is_dense and tensor.dtype == view.dtype and tensor.shape == view.shape


def _layout(tensors: Mapping[str, Tensor]) -> _Layout:
    """Name, dtype and shape of each tensor, in the order of the file: the widest first, so that all align."""
    import torch

    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise TypeError(
                f"{name}: a {tensor.layout} tensor on {tensor.device} cannot be saved; make it dense first"
            )
        if _name_of(tensor.dtype) not in _DTYPES:
            raise TypeError(
                f"{name}: a tensor of {tensor.dtype} cannot be saved; give it another dtype first"
            )
    found = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    return tuple(sorted(found, key=lambda one: (-one[1].itemsize, one[0])))


def _header(layout: _Layout) -> tuple[bytes, list[tuple[int, int]]]:
    """The file's first bytes, and from where to where in it each tensor lies."""
    entries, offsets, end = {}, [], 0
    for name, dtype, shape in layout:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": _DTYPES[_name_of(dtype)],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        offsets.append((start, end))
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNED_BYTES)
    header = len(text).to_bytes(8, "little") + text
    return header, [(len(header) + start, len(header) + end) for start, end in offsets]


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
