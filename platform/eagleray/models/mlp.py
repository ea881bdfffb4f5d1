"""Fully connected layers."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn

from eagleray.models.audio import log_mel
from eagleray.models.layers import ACTIVATIONS, norm_of_features
from eagleray.models.sizes import num_outputs
from eagleray.specs import Signature
from eagleray.specs.model import MlpModel


class Mlp(nn.Module):
    """Tabular [B, F], image [B, C, H, W] or audio [B, S] -> [B, num_classes] or [B, V].

    The input is flattened (audio: its log-mel spectrogram); each hidden layer is linear, norm, activation,
    dropout.
    """

    def __init__(self, spec: MlpModel, signature: Signature):
        super().__init__()
        self.front: nn.Module = nn.Identity()
        width = prod(signature.input_shape)
        if signature.input_kind == "audio":
            self.front = front = log_mel(signature)
            width = front.num_frames * front.num_mels
        layers: list[nn.Module] = []
        for hidden in spec.hidden:
            layers += [nn.Linear(width, hidden), norm_of_features(spec.norm, hidden)]
            layers += [ACTIVATIONS[spec.activation](), nn.Dropout(spec.dropout)]
            width = hidden
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_outputs(signature))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, num_classes], or values [B, V]."""
        return self.head(self.layers(self.front(inputs).flatten(1)))
