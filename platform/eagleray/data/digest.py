"""What makes two datasets the same to a run: content, and what the spec makes of it."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from eagleray.data.parts import Array
from eagleray.specs import Spec

_NO_MATTER = {"augment", "paths", "format", "memory_budget_mib"}
"""Fields that change neither which sample stands at a position nor what is in it."""


def of_arrays(*arrays: Array) -> str:
    """SHA-256 (hex) of the arrays: dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def of_dataset(content: str, spec: Spec, layout: str = "memory") -> str:
    """SHA-256 (hex) of a content's digest, of the spec's fields that matter, and of the blocks' layout."""
    fields = json.dumps(spec.model_dump(mode="json", exclude=_NO_MATTER), sort_keys=True)
    return hashlib.sha256(f"{content}\n{fields}\n{layout}".encode()).hexdigest()
