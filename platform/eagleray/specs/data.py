"""Where samples come from: built-in sets, files that pyarrow reads, or a function of the user's own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from eagleray.specs.base import ExistingPath, Spec, located

FUNCTION = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


class Split(Spec):
    """Fractions of the samples; each sample falls into its part by a hash of its index and the seed."""

    train: float = Field(default=0.8, gt=0, le=1)
    validation: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _whole(self) -> Split:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + validation + test is {total:g}; make it 1")
        return self


class Augment(Spec):
    """Random changes of training images, drawn from (seed, epoch, sample), so that no rank matters."""

    max_shift_pixels: int = Field(default=0, ge=0)
    horizontal_flip: bool = False
    noise_std: float = Field(default=0.0, ge=0)


class _Data(Spec):
    split: Split = Split()
    split_seed: int = 0
    normalize: Literal["none", "standard"] = "none"
    """`standard`: zero mean and unit variance per feature or channel, measured on the training part."""
    augment: Augment | None = None
    """Images only."""


class DigitsData(_Data):
    """The 1,797 real handwritten digits (8x8 grey) that ship with scikit-learn."""

    kind: Literal["digits"]


class StdlibTextData(_Data):
    """The Python standard library's own source text as byte tokens, cut into windows."""

    kind: Literal["stdlib_text"]
    sequence_length: int = Field(default=128, ge=2)
    max_mib: float = Field(default=8.0, gt=0)
    """Only so much text is read (files in sorted order)."""


class TableData(_Data):
    """Parquet, CSV, Arrow or JSON lines, local or any fsspec URL; may be larger than memory."""

    kind: Literal["table"]
    paths: tuple[ExistingPath, ...] = Field(min_length=1)
    """Files, folders or globs."""
    format: Literal["auto", "parquet", "csv", "arrow", "jsonl"] = "auto"
    input_kind: Literal["tabular", "image", "audio", "text", "tokens"] = "tabular"
    features: tuple[str, ...] = ()
    """Input columns. Tabular: empty means every numeric column but the target. Others: exactly one."""
    target: str | None = None
    """The target column; text and tokens without one train on their own next token."""
    target_kind: Literal["class", "value"] = "class"
    input_shape: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Images: (channels, height, width) of a flat list column."""
    sequence_length: int = Field(default=128, ge=2)
    """Text and tokens are cut or padded to it."""
    vocabulary_size: int | None = Field(default=None, ge=2)
    """Of token columns."""
    sample_rate_hz: int | None = Field(default=None, gt=0)
    """Of audio columns."""
    memory_budget_mib: float = Field(default=256.0, gt=0)
    """A table larger than this is read in a two-level order within about so much memory."""

    @model_validator(mode="after")
    def _columns(self) -> TableData:
        if self.input_kind != "tabular" and len(self.features) != 1:
            raise ValueError(f"{self.input_kind} input takes exactly one column in features")
        if self.target is not None and self.target in self.features:
            raise ValueError(f"target {self.target!r} is also among the features; take it out of one")
        if self.input_kind in ("tabular", "image", "audio") and self.target is None:
            raise ValueError(f"{self.input_kind} input needs a target column")
        if self.input_kind == "image" and len(self.input_shape) != 3:
            raise ValueError("image input needs input_shape = [channels, height, width]")
        if self.input_kind == "audio" and self.sample_rate_hz is None:
            raise ValueError("audio input needs sample_rate_hz")
        if self.input_kind == "tokens" and self.vocabulary_size is None:
            raise ValueError("token input needs vocabulary_size")
        if self.input_kind != "image" and self.augment is not None:
            sentence = f"is for images, and input_kind is {self.input_kind!r}; take the table out"
            raise located([(("augment",), sentence, self.augment)])
        return self


class ModuleData(_Data):
    """A function of the user's own that returns arrays (its files travel in the spec's `code`)."""

    kind: Literal["module"]
    function: str = Field(pattern=FUNCTION)
    """`module:function`; called with `arguments`, returns (inputs, targets, signature table)."""
    arguments: dict[str, Any] = {}


DataSpec = Annotated[DigitsData | StdlibTextData | TableData | ModuleData, Field(discriminator="kind")]
