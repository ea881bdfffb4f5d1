"""Typed files that users write: TOML read into frozen pydantic models."""

from eagleray.specs.base import FileSpec, Spec, apply_override, load, load_any, validate
from eagleray.specs.local import LocalSpec
from eagleray.specs.signature import IGNORED_TARGET, Normalization, Signature
from eagleray.specs.train import TrainSpec

__all__ = [
    "IGNORED_TARGET",
    "FileSpec",
    "LocalSpec",
    "Normalization",
    "Signature",
    "Spec",
    "TrainSpec",
    "apply_override",
    "load",
    "load_any",
    "validate",
]
