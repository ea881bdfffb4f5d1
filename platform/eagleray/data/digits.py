"""The 1,797 real handwritten digits (8x8, grey values 0..16) that ship with scikit-learn.

Source: UCI ML hand-written digits, test part (Alpaydin, Kaynak 1998).
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from eagleray.data import in_memory
from eagleray.data.parts import Array, Dataset
from eagleray.errors import DataError
from eagleray.specs import Signature
from eagleray.specs.data import DigitsData

_FILE = "datasets/data/digits.csv.gz"


def open_digits(spec: DigitsData, is_raw: bool = False) -> Dataset:
    """Images [B, 1, 8, 8] float32 and classes 0..9. Raises: DataError if scikit-learn's file is not there."""
    table = _read()
    signature = Signature(
        input_kind="image",
        input_shape=(1, 8, 8),
        target_kind="class",
        num_classes=10,
        labels=tuple(str(digit) for digit in range(10)),
    )
    images = table[:, :-1].astype(np.float32).reshape(-1, 1, 8, 8)
    targets = table[:, -1].astype(np.int64)
    return in_memory.dataset(images, targets, signature, spec, what="digits", is_raw=is_raw)


def _read() -> Array:
    """Rows of 64 grey values and the class, [1797, 65] uint8.

    The file is read without importing scikit-learn: that takes 2 s, on every rank.
    """
    found = importlib.util.find_spec("sklearn")
    folders = found.submodule_search_locations if found else None
    if not folders:
        raise DataError(
            'data.kind "digits" needs scikit-learn, of the extra "platform"; pip install ".[platform]"'
        )
    path = Path(folders[0], _FILE)
    try:
        text = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); install scikit-learn again") from error
    return np.array(text.replace(b"\n", b",").rstrip(b",").split(b","), dtype=np.float32).reshape(-1, 65)
