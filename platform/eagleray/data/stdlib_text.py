"""The Python standard library's own source text as byte tokens: real text that every machine has."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from pathlib import Path

import numpy as np

from eagleray.data import digest, normalize, split
from eagleray.data.parts import Dataset, WindowPart
from eagleray.data.tokenizer import ByteTokenizer
from eagleray.errors import DataError
from eagleray.specs import Signature
from eagleray.specs.data import StdlibTextData

_LEFT_OUT = {
    "site-packages", "dist-packages", "__pycache__",  # not the standard library
    "test", "tests", "idlelib", "idle_test", "lib2to3", "distutils", "ensurepip", "tkinter", "turtledemo",
    "encodings", "pydoc_data",  # tables of characters, and one module that is all prose
}  # fmt: skip
"""Folders: what some distributions package apart, and what is no code."""
_PER_MACHINE = ("_sysconfigdata", "sitecustomize", "usercustomize")
"""Files that differ from machine to machine."""


def open_stdlib_text(spec: StdlibTextData) -> Dataset:
    """Windows of tokens [B, T] int64, and the same shifted by one as targets.

    The digest is the text's: nodes with another Python patch release have other text, and are told apart.

    Raises: DataError if this Python's library is not there as source.
    """
    normalize.check_kind(spec.normalize, "tokens")
    text = _read(Path(sysconfig.get_path("stdlib")), int(spec.max_mib * 2**20))
    length = spec.sequence_length
    num_windows = (len(text) - 1) // length
    if num_windows < 1:
        raise DataError(
            f"the standard library's text ({len(text)} bytes) is shorter than one window of "
            f"{length} tokens; lower data.sequence_length or raise data.max_mib"
        )
    buffer = np.frombuffer(text, np.uint8)
    rows = split.indices(spec.split, spec.split_seed, num_windows, "standard-library text")
    parts = {name: WindowPart(buffer, chosen * length, length) for name, chosen in rows.items()}
    return Dataset(
        signature=Signature(
            input_kind="tokens",
            input_shape=(length,),
            target_kind="tokens",
            target_shape=(length,),
            vocabulary_size=ByteTokenizer.vocabulary_size,
            tokenizer="bytes",
            padding_token=ByteTokenizer.padding_token,
            mask_token=ByteTokenizer.mask_token,
        ),
        digest=digest.of_dataset(hashlib.sha256(text).hexdigest(), spec),
        train=parts["train"],
        validation=parts.get("validation"),
        test=parts.get("test"),
    )


def _read(root: Path, max_bytes: int) -> bytes:
    """The library's source files, top-level modules first, then by path; cut after `max_bytes`."""
    chunks, total = [], 0
    for path in _files(root):
        chunks.append(path.read_bytes())
        total += len(chunks[-1])
        if total >= max_bytes:
            break
    if not total:
        raise DataError(
            f"{root}: no source of the standard library here; use a Python that has its .py files "
            "(a full install), or another data.kind"
        )
    return b"".join(chunks)[:max_bytes]


def _files(root: Path) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(root):
        # In place, so that os.walk does not go down there: site-packages may hold 50,000 files.
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith("config-")]
        found += [
            Path(folder, name).relative_to(root)
            for name in names
            if name.endswith(".py") and not name.startswith(_PER_MACHINE)
        ]
    return [root / path for path in sorted(found, key=lambda path: (len(path.parts), path.parts))]
