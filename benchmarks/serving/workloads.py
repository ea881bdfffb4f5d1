"""The models that are served, the same wherever they are: sizes, weights by seed, and what they are asked."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import place  # first: it says where eagleray is

if TYPE_CHECKING:
    from torch import nn

    from eagleray.specs import ModelCard

OUTPUTS = 10
CONTEXT = 128
"""Of the texts' models: as `make bench-generation` has it, so that no window hops."""
PROMPT = "def "


@dataclass(frozen=True)
class Perceptron:
    """A model of fully connected layers: `inputs` numbers to ten."""

    inputs: int
    hidden: tuple[int, ...]


@dataclass(frozen=True)
class Text:
    """A GPT over bytes."""

    width: int
    heads: int
    layers: int


MODELS: Mapping[str, Perceptron | Text] = {
    "tiny": Perceptron(16, (32,)),
    "mlp": Perceptron(256, (1024, 1024)),  # 1.3 million parameters
    "large": Perceptron(256, (3072, 3072)),  # 10.3 million: a batch takes more than 5 ms
    "wide": Perceptron(150_000, ()),  # 600 KB for each sample
    "gpt": Text(96, 4, 3),  # the demo's
    "small-gpt": Text(16, 2, 1),  # as cheap as one can be: it is the way of its events that is measured
}


@cache
def card(name: str) -> ModelCard:
    """The model's card, for the registry."""
    from eagleray.specs import Architecture, Lineage, ModelCard, Signature
    from eagleray.specs.card import inputs_of, outputs_of
    from eagleray.specs.model import GptModel, MlpModel

    model = MODELS[name]
    if isinstance(model, Perceptron):
        spec: Any = MlpModel(kind="mlp", hidden=model.hidden)
        signature = Signature(
            input_kind="tabular",
            input_shape=(model.inputs,),
            target_kind="value",
            target_shape=(OUTPUTS,),
        )
    else:
        spec = GptModel(kind="gpt", width=model.width, num_heads=model.heads, num_layers=model.layers)
        signature = Signature(
            input_kind="tokens",
            input_shape=(CONTEXT,),
            target_kind="tokens",
            target_shape=(CONTEXT,),
            vocabulary_size=258,
            tokenizer="bytes",
            padding_token=256,
            mask_token=257,
        )
    return ModelCard(
        name=name,
        architecture=Architecture.of(spec),
        signature=signature,
        inputs=inputs_of(signature),
        outputs=outputs_of(signature),
        lineage=Lineage(
            run_id="bench", dataset_digest="0" * 64, code_version="bench", created_at=time.time()
        ),
    )


def module(name: str) -> nn.Module:
    """The model, in evaluation mode; untrained, for the work is the same."""
    import torch

    from eagleray import models

    torch.manual_seed(0)
    found = card(name)
    return models.build(found.architecture.spec, found.signature).eval()


def samples(name: str, count: int = 1) -> np.ndarray:
    """What is asked of a perceptron: [count, inputs] float32, with four decimals."""
    model = MODELS[name]
    assert isinstance(model, Perceptron)
    drawn = np.random.default_rng(7).standard_normal((count, model.inputs))
    return drawn.round(4).astype(np.float32)


__all__ = ["CONTEXT", "MODELS", "OUTPUTS", "PROMPT", "card", "module", "place", "samples"]
