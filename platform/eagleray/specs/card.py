"""`ModelCard`: what a model package says of its model; the content of its `model.json`."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from eagleray.specs.base import Name, Spec
from eagleray.specs.data import FUNCTION
from eagleray.specs.model import ModelSpec, ModuleModel
from eagleray.specs.signature import Signature

REGISTERED = "eagleray.models:build"
"""Its arguments are `{"spec": <the JSON of a ModelSpec>}`; loading it runs no code but ours."""

Datatype = Literal["BOOL", "UINT8", "INT32", "INT64", "FP32", "FP64", "BYTES"]
"""Open Inference's names, those that cards use; BYTES are UTF-8 strings."""


class TensorInfo(Spec):
    """One input or output, as callers see it."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    """The batch first; -1 for a free size."""


class Architecture(Spec):
    """What is called to get the module."""

    function: str = Field(default=REGISTERED, pattern=FUNCTION)
    """`module:function`. Another one than REGISTERED is the user's own, or another library's."""
    arguments: dict[str, Any] = {}
    pass_signature: bool = True
    """Whether the function also takes the card's `signature`."""

    @model_validator(mode="after")
    def _has_a_spec(self) -> Architecture:
        if self.is_registered and (set(self.arguments) != {"spec"} or isinstance(self.spec, ModuleModel)):
            raise ValueError(f"{REGISTERED} takes one argument, the spec of a model of ours")
        return self

    @classmethod
    def of(cls, spec: ModelSpec) -> Architecture:
        """The architecture of a train spec's model."""
        if isinstance(spec, ModuleModel):
            return cls(function=spec.function, arguments=spec.arguments, pass_signature=spec.pass_signature)
        return cls(arguments={"spec": spec.model_dump(mode="json")})

    @property
    def is_registered(self) -> bool:
        """Whether it is one of ours, which any service may load."""
        return self.function == REGISTERED

    @property
    def spec(self) -> ModelSpec:
        """The model's spec, as `of` was given it."""
        if self.is_registered:
            return _model_specs().validate_python(self.arguments["spec"])
        return ModuleModel(
            kind="module",
            function=self.function,
            arguments=self.arguments,
            pass_signature=self.pass_signature,
        )


@cache
def _model_specs() -> TypeAdapter[ModelSpec]:
    return TypeAdapter(ModelSpec)


class Lineage(Spec):
    """Where a model comes from."""

    run_id: str
    dataset_digest: str
    code_version: str
    compression: str = "none"
    """Kind of the gradients' compressor."""
    search: str | None = None
    """The search whose trial the run was."""
    parent: str | None = None
    """The version it was made from: "digits/versions/2"."""
    optimization: tuple[str, ...] = ()
    """Steps after training, in order: pruned, quantised, …"""
    created_at: float = Field(ge=0)
    """Seconds since the epoch."""


class ModelCard(Spec):
    """A model in words: everything but its weights.

    Inputs are raw, as in the dataset's source: normalisation and tokenisation by the signature are the
    predictor's work, never the caller's.
    """

    format: Literal[1] = 1
    name: Name
    architecture: Architecture
    signature: Signature
    inputs: tuple[TensorInfo, ...] = Field(min_length=1)
    outputs: tuple[TensorInfo, ...] = Field(min_length=1)
    metrics: dict[str, float] = {}
    lineage: Lineage

    @property
    def is_generative(self) -> bool:
        """Whether the model can complete text: a next-token GPT with a tokenizer."""
        return (
            self.architecture.is_registered
            and self.architecture.spec.kind == "gpt"
            and self.signature.target_kind == "tokens"
            and self.signature.tokenizer is not None
        )


def inputs_of(signature: Signature) -> tuple[TensorInfo, ...]:
    """The inputs of a model with this signature.

    image FP32 [-1, C, H, W]; features FP32 [-1, F]; audio FP32 [-1, S]; text BYTES [-1]; tokens INT64
    [-1, -1].
    """
    kind = signature.input_kind
    if kind == "text":
        return (TensorInfo(name="text", datatype="BYTES", shape=(-1,)),)
    if kind == "tokens":
        return (TensorInfo(name="tokens", datatype="INT64", shape=(-1, -1)),)
    name = "features" if kind == "tabular" else kind
    return (TensorInfo(name=name, datatype="FP32", shape=(-1, *signature.input_shape)),)


def outputs_of(signature: Signature) -> tuple[TensorInfo, ...]:
    """The outputs of a model with this signature.

    class: label BYTES [-1], class INT64 [-1], probabilities FP32 [-1, classes]; value FP32 [-1, V]; tokens:
    logits FP32 [-1, -1, vocabulary].
    """
    if signature.target_kind == "class":
        assert signature.num_classes is not None
        return (
            TensorInfo(name="label", datatype="BYTES", shape=(-1,)),
            TensorInfo(name="class", datatype="INT64", shape=(-1,)),
            TensorInfo(name="probabilities", datatype="FP32", shape=(-1, signature.num_classes)),
        )
    if signature.target_kind == "tokens":
        assert signature.vocabulary_size is not None
        return (TensorInfo(name="logits", datatype="FP32", shape=(-1, -1, signature.vocabulary_size)),)
    return (TensorInfo(name="value", datatype="FP32", shape=(-1, prod(signature.target_shape))),)
