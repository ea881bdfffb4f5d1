"""Typed files that users write: TOML read into frozen pydantic models."""

from eagleray.specs.base import FileSpec, Spec, apply_overrides, load, load_any, validate
from eagleray.specs.card import Architecture, Lineage, ModelCard, TensorInfo
from eagleray.specs.evaluate import EvaluateSpec
from eagleray.specs.local import LocalSpec
from eagleray.specs.service import ServiceSpec
from eagleray.specs.signature import IGNORED_TARGET, Normalization, Signature
from eagleray.specs.train import TrainSpec
from eagleray.specs.tune import TuneSpec

__all__ = [
    "IGNORED_TARGET",
    "Architecture",
    "EvaluateSpec",
    "FileSpec",
    "Lineage",
    "LocalSpec",
    "ModelCard",
    "Normalization",
    "ServiceSpec",
    "Signature",
    "Spec",
    "TensorInfo",
    "TrainSpec",
    "TuneSpec",
    "apply_overrides",
    "load",
    "load_any",
    "validate",
]
