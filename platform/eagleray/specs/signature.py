"""What a dataset yields and a model takes: the value that `data` hands to `models`, and packages carry."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from eagleray.specs.base import Spec

InputKind = Literal["tabular", "image", "audio", "text", "tokens"]
TargetKind = Literal["class", "value", "tokens"]

IGNORED_TARGET = -100
"""A target token that no loss counts (padding, or not masked); torch's own default `ignore_index`."""


class Normalization(Spec):
    """`(x - mean) / std`, over the features of tabular input or the channels of an image."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Signature(Spec):
    """One sample's input and target.

    Arrays of a batch have the batch as their first dimension: tabular [B, F] float32, image [B, C, H, W]
    float32, audio [B, S] float32 in [-1, 1], text and tokens [B, T] int64. Targets: class [B] int64, value
    [B, V] float32, tokens [B, T] int64 with `IGNORED_TARGET` where nothing is to be predicted.
    """

    input_kind: InputKind
    input_shape: tuple[int, ...]
    """Of one sample, without the batch."""
    target_kind: TargetKind
    target_shape: tuple[int, ...] = ()
    feature_names: tuple[str, ...] = ()
    num_classes: int | None = Field(default=None, ge=2)
    labels: tuple[str, ...] = ()
    """Class names in the order of the class index."""
    vocabulary_size: int | None = Field(default=None, ge=2)
    """Of text and tokens, special tokens included."""
    tokenizer: Literal["bytes"] | None = None
    """`bytes`: UTF-8 bytes 0..255, then 256 = padding, 257 = mask."""
    padding_token: int | None = Field(default=None, ge=0)
    """The token that fills up short rows, if there is one."""
    mask_token: int | None = Field(default=None, ge=0)
    """The token that masked-token training hides others behind, if there is one."""
    sample_rate_hz: int | None = Field(default=None, gt=0)
    normalization: Normalization | None = None

    @model_validator(mode="after")
    def _complete(self) -> Signature:
        if self.target_kind == "class" and self.num_classes is None:
            raise ValueError("a class target needs num_classes")
        if self.input_kind in ("text", "tokens") and self.vocabulary_size is None:
            raise ValueError(f"{self.input_kind} input needs vocabulary_size")
        if self.input_kind == "audio" and self.sample_rate_hz is None:
            raise ValueError("audio input needs sample_rate_hz")
        return self
