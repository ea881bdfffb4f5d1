"""Named tensors <-> the bytes of a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from eagleray.packaging import manifest as manifests
from eagleray.packaging.manifest import Manifest
from eagleray.packaging.storage import Folder

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """The safetensors file of `tensors` (any device; views and shared storage are fine, each goes in whole).

    Raises:
        TypeError: a tensor is sparse, quantised or on `meta`: it has no plain bytes.
    """
    from safetensors.torch import save

    portable: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        portable[name] = _portable(name, tensor, storages)
    return save(portable)


def read_tensors(folder: Folder, manifest: Manifest, name: str) -> dict[str, Tensor]:
    """The tensors of `<name>.safetensors`, on the CPU. Raises: DamageError where the file differs."""
    from safetensors.torch import load

    file = name + SUFFIX
    return load(manifest.check(file, manifests.read(folder, file)))


def _portable(name: str, tensor: Tensor, storages: set[int]) -> Tensor:
    """`tensor` on the CPU, contiguous, on a storage that no other has; its storage is added to `storages`."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise TypeError(
            f"{name}: a {tensor.layout} tensor on {tensor.device} cannot be saved; make it dense first"
        )
    plain = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
    if plain.untyped_storage().data_ptr() in storages:
        plain = plain.clone()
    storages.add(plain.untyped_storage().data_ptr())
    return plain
