"""Checkpoints and packages on disk: written whole, verified when read, never pickle."""

from eagleray.packaging.checkpoint import Checkpoint, CheckpointStore
from eagleray.packaging.manifest import Manifest, verify_directory
from eagleray.packaging.model_package import ModelPackage, open_package, write_package
from eagleray.packaging.storage import Folder
from eagleray.packaging.store import ModelStore, ModelVersion
from eagleray.packaging.tensors import Image
from eagleray.packaging.tree import flatten, unflatten
from eagleray.packaging.weights import load_weights

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "Folder",
    "Image",
    "Manifest",
    "ModelPackage",
    "ModelStore",
    "ModelVersion",
    "flatten",
    "load_weights",
    "open_package",
    "unflatten",
    "verify_directory",
    "write_package",
]
