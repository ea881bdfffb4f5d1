"""Sizes that models read from a dataset's signature."""

from __future__ import annotations

from math import prod

from eagleray.specs import Signature

BYTE_PADDING = 256
"""The `bytes` tokenizer's padding token."""


def num_outputs(signature: Signature) -> int:
    """Size of a model's last dimension: classes, values, or the vocabulary."""
    if signature.target_kind == "class":
        assert signature.num_classes is not None
        return signature.num_classes
    if signature.target_kind == "tokens":
        assert signature.vocabulary_size is not None
        return signature.vocabulary_size
    return prod(signature.target_shape)


def padding_token(signature: Signature) -> int | None:
    """The token that stands for nothing, if the dataset or its tokenizer has one."""
    if signature.padding_token is not None:
        return signature.padding_token
    return BYTE_PADDING if signature.tokenizer == "bytes" else None
