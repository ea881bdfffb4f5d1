"""A model package: everything that a service or a test needs of a model, in one verified folder.

    model.json            the card (`specs/card.py`)
    weights.safetensors   the state dict
    code/…                .py files of a user's own model, if it has any
    MANIFEST.json         size and SHA-256 of each; its own digest is the package's identity
    COMMIT                that digest; written last

Written as checkpoints are: whole or not at all. Every file is compared with the manifest before it is used.
No file of it is ever unpickled, and none of its code runs unless the caller allows it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eagleray.packaging.manifest import Manifest
from eagleray.packaging.storage import Folder
from eagleray.specs import ModelCard

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class ModelPackage:
    """A package whose manifest and card verified when it was opened; other files are as they are read."""

    url: str
    card: ModelCard
    manifest: Manifest = field(repr=False)
    allow_code: bool = False
    """Whether its own code, or a function of another library, may run."""

    @property
    def digest(self) -> str:
        """The package's identity: SHA-256 (hex) of its MANIFEST.json."""
        return self.manifest.digest

    def weights(self) -> dict[str, Tensor]:
        """The state dict, on the CPU. Raises: PackageError where the file is missing or differs."""
        raise NotImplementedError

    def build_module(self) -> nn.Module:
        """The module with its weights, on the CPU, in evaluation mode.

        Raises:
            PackageError: the weights are damaged or of another model; or the architecture is none of ours and
                `allow_code` is not set, or cannot be imported (names the missing module).
        """
        raise NotImplementedError


def write_package(
    folder: Folder, card: ModelCard, weights: Mapping[str, Tensor], code: Folder | None = None
) -> Manifest:
    """Write a package to `folder`, which must not exist yet; when this returns it is on stable storage.

    Args:
        folder: Where; on disk it appears there whole, on an object store it counts once COMMIT is there.
        card: Becomes model.json.
        weights: The state dict: tensors of any device, dense.
        code: Folder whose .py files go into `code/`; nothing else may be in it.

    Raises:
        PackageError: the storage failed, or `code` holds what is no .py file.
    """
    raise NotImplementedError


def open_package(
    url: str | os.PathLike[str], *, allow_code: bool = False, digest: str | None = None
) -> ModelPackage:
    """The package at `url` (a local path or any fsspec URL), its manifest and card verified.

    Args:
        url: The package's folder.
        allow_code: Let an architecture that is none of ours run.
        digest: The identity that it must have, where the caller knows it.

    Raises:
        PackageError: nothing is there, it was not committed, a file is missing or not listed, the manifest or
            the card is damaged, the identity is another one, or the architecture is not allowed.
    """
    raise NotImplementedError
