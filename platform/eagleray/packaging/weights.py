"""`init_from`: the weights of a checkpoint, of a run's newest checkpoint, or of a model package."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from eagleray.errors import CheckpointError
from eagleray.packaging import manifest as manifests
from eagleray.packaging.checkpoint import CheckpointStore, is_checkpoint_name
from eagleray.packaging.manifest import DamageError
from eagleray.packaging.storage import Folder
from eagleray.packaging.tensors import SUFFIX, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTS = "weights"


def load_weights(
    url: str | os.PathLike[str], on_damaged: Callable[[str], None] = warnings.warn
) -> dict[str, Tensor]:
    """The weights at `url`, on the CPU, after comparing every file with its manifest.

    Args:
        url: A checkpoint, a model package, a run's `checkpoints` folder or a run's folder (the newest
            checkpoint that verifies); a local path or any fsspec URL.
        on_damaged: As in `CheckpointStore.newest`.

    Raises:
        CheckpointError: nothing of that kind is there, or it is damaged, or it was never committed.
    """
    folder = Folder(url)
    try:
        if folder.exists(manifests.NAME):
            return _from_folder(folder)
        if not folder.exists():
            raise CheckpointError(
                f"init_from: {folder.url} does not exist; give a checkpoint, a run or a model package"
            )
    except OSError as error:
        raise CheckpointError(f"init_from: {folder.url} cannot be read: {error.strerror or error}") from error
    for candidate in (folder, folder.child("checkpoints")):
        checkpoint = CheckpointStore(candidate.url).newest(on_damaged)
        if checkpoint:
            return checkpoint.tensors(_WEIGHTS)
    raise CheckpointError(
        f"init_from: {folder.url} holds no committed checkpoint and no {manifests.NAME}; "
        "give a checkpoint, a run or a model package"
    )


def _from_folder(folder: Folder) -> dict[str, Tensor]:
    if is_checkpoint_name(folder.url.rsplit("/", 1)[-1]) and not folder.exists(manifests.MARKER):
        raise CheckpointError(
            f"init_from: {folder.url} was not committed; give the run's folder to use its newest"
        )
    try:
        manifest = manifests.verify(folder)
        if _WEIGHTS + SUFFIX not in manifest.files:
            raise CheckpointError(f"init_from: {folder.url} has no {_WEIGHTS}{SUFFIX}")
        return read_tensors(folder, manifest, _WEIGHTS)
    except DamageError as damage:
        raise CheckpointError(
            f"init_from: {folder.url}: {damage}; take another checkpoint or copy"
        ) from damage
