"""Checkpoints and packages on disk: written whole, verified when read, never pickle."""

from eagleray.packaging.checkpoint import Checkpoint, CheckpointStore
from eagleray.packaging.manifest import Manifest, verify_directory
from eagleray.packaging.storage import Folder
from eagleray.packaging.tree import flatten, unflatten
from eagleray.packaging.weights import load_weights

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "Folder",
    "Manifest",
    "flatten",
    "load_weights",
    "unflatten",
    "verify_directory",
]
