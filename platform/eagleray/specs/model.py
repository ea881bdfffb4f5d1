"""Architectures and their sizes; input and output sizes come from the dataset's signature."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from eagleray.specs.base import Spec
from eagleray.specs.data import FUNCTION

Activation = Literal["relu", "gelu", "tanh"]
Norm = Literal["none", "batch", "layer"]


Size = Annotated[int, Field(ge=1)]


class _Model(Spec):
    dropout: float = Field(default=0.0, ge=0, lt=1)


class MlpModel(_Model):
    """Fully connected layers over the flattened input."""

    kind: Literal["mlp"]
    hidden: tuple[Size, ...] = (128,)
    activation: Activation = "relu"
    norm: Norm = "none"


class CnnModel(_Model):
    """Convolution, norm, activation, pooling per entry of `channels`; then one hidden layer."""

    kind: Literal["cnn"]
    channels: tuple[Size, ...] = Field(default=(32, 64), min_length=1)
    kernel_size: int = Field(default=3, ge=1)
    hidden: int = Field(default=128, ge=1)
    activation: Activation = "relu"
    norm: Norm = "none"


class RecurrentModel(_Model):
    """A recurrent network over time steps, tokens (embedded) or spectrogram frames."""

    kind: Literal["rnn", "gru", "lstm"]
    hidden: int = Field(default=128, ge=1)
    num_layers: int = Field(default=1, ge=1)
    bidirectional: bool = False
    embedding: int = Field(default=64, ge=1)


class _Attention(_Model):
    width: int = Field(default=128, ge=1)
    num_heads: int = Field(default=4, ge=1)
    num_layers: int = Field(default=3, ge=1)
    feed_forward: int | None = Field(default=None, ge=1)
    """4 x width where not given."""

    @model_validator(mode="after")
    def _divisible(self) -> _Attention:
        if self.width % self.num_heads:
            raise ValueError(f"width ({self.width}) must be divisible by num_heads ({self.num_heads})")
        return self


class TransformerModel(_Attention):
    """A transformer encoder; pools for class and value targets, predicts every token for token targets."""

    kind: Literal["transformer"]


class GptModel(_Attention):
    """A decoder-only transformer with causal attention and tied embeddings."""

    kind: Literal["gpt"]


class ModuleModel(Spec):
    """A function of the user's own: called with `signature` and `arguments`, returns a torch module."""

    kind: Literal["module"]
    function: str = Field(pattern=FUNCTION)
    """`module:function`, in the spec's `code` or installed (torchvision's, for instance)."""
    arguments: dict[str, Any] = {}
    pass_signature: bool = True
    """False calls it with `arguments` alone, as functions that know nothing of Eagleray expect."""


ModelSpec = Annotated[
    MlpModel | CnnModel | RecurrentModel | TransformerModel | GptModel | ModuleModel,
    Field(discriminator="kind"),
]
