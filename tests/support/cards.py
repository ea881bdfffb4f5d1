"""Small models, and cards of them."""

from __future__ import annotations

import time
from typing import Any

from eagleray.specs import Architecture, Lineage, ModelCard, Normalization, Signature
from eagleray.specs.card import inputs_of, outputs_of
from eagleray.specs.model import CnnModel, GptModel, MlpModel, ModelSpec, RecurrentModel, TransformerModel

DIGITS = Signature(
    input_kind="image",
    input_shape=(1, 8, 8),
    target_kind="class",
    num_classes=3,
    labels=("zero", "one", "two"),
    normalization=Normalization(mean=(4.0,), std=(2.0,)),
)
TEXT: dict[str, Any] = {"vocabulary_size": 258, "tokenizer": "bytes", "padding_token": 256, "mask_token": 257}
SIGNATURES = {
    "image": DIGITS,
    "tabular": Signature(input_kind="tabular", input_shape=(4,), target_kind="value", target_shape=(2,)),
    "audio": Signature(
        input_kind="audio", input_shape=(1600,), target_kind="class", num_classes=2, sample_rate_hz=8000
    ),
    "text": Signature(
        input_kind="text", input_shape=(12,), target_kind="class", num_classes=2, labels=("no", "yes"), **TEXT
    ),
    "tokens": Signature(
        input_kind="tokens", input_shape=(12,), target_kind="tokens", target_shape=(12,), **TEXT
    ),
}
MODELS: dict[str, ModelSpec] = {
    "image": CnnModel(kind="cnn", channels=(4,), hidden=8),
    "tabular": MlpModel(kind="mlp", hidden=(8,)),
    "audio": RecurrentModel(kind="gru", hidden=8),
    "text": TransformerModel(kind="transformer", width=16, num_heads=2, num_layers=1),
    "tokens": GptModel(kind="gpt", width=16, num_heads=2, num_layers=1),
}


def lineage(**changes: Any) -> Lineage:
    """Where a model of the tests comes from."""
    fields = {"run_id": "digits-1", "dataset_digest": "d" * 64, "code_version": "0.1.0", **changes}
    return Lineage(created_at=time.time(), **fields)


def card(kind: str = "image", **changes: Any) -> ModelCard:
    """The card of a small model for one kind of input."""
    signature = changes.pop("signature", SIGNATURES[kind])
    fields: dict[str, Any] = {
        "name": "digits",
        "architecture": Architecture.of(MODELS[kind]),
        "signature": signature,
        "inputs": inputs_of(signature),
        "outputs": outputs_of(signature),
        "metrics": {"test_accuracy": 0.97},
        "lineage": lineage(),
        **changes,
    }
    return ModelCard(**fields)


def weights(of: ModelCard, seed: int = 0) -> dict[str, Any]:
    """Random weights for a card's model."""
    import torch

    from eagleray.models import build

    torch.manual_seed(seed)
    return build(of.architecture.spec, of.signature).state_dict()
