"""Convolutions over images and spectrograms."""

from __future__ import annotations

from torch import Tensor, nn

from eagleray.models.audio import log_mel
from eagleray.models.layers import ACTIVATIONS, norm_of_channels
from eagleray.models.sizes import num_outputs
from eagleray.specs import Signature
from eagleray.specs.model import CnnModel

MAX_MAP = 8
"""Feature maps larger than 8 x 8 are averaged down to it, so that the hidden layer stays small."""


class Cnn(nn.Module):
    """Image [B, C, H, W] or audio [B, S] (log-mel, as one channel) -> [B, num_classes] or [B, V].

    Per entry of `channels`: convolution that keeps the size, norm, activation, 2 x 2 maximum. Then the map is
    flattened into one hidden layer with dropout.
    """

    def __init__(self, spec: CnnModel, signature: Signature):
        super().__init__()
        self.front: nn.Module = nn.Identity()
        if signature.input_kind == "audio":
            self.front = front = log_mel(signature)
            depth, height, width = 1, front.num_frames, front.num_mels
        else:
            depth, height, width = signature.input_shape
        stages: list[nn.Module] = []
        for channels in spec.channels:
            pool = (min(2, height), min(2, width))
            stages += [
                nn.Conv2d(depth, channels, spec.kernel_size, padding="same"),
                norm_of_channels(spec.norm, channels),
                ACTIVATIONS[spec.activation](),
                nn.MaxPool2d(pool),
            ]
            depth, height, width = channels, height // pool[0], width // pool[1]
        if height > MAX_MAP or width > MAX_MAP:
            height, width = min(height, MAX_MAP), min(width, MAX_MAP)
            stages.append(nn.AdaptiveAvgPool2d((height, width)))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(depth * height * width, spec.hidden),
            ACTIVATIONS[spec.activation](),
            nn.Dropout(spec.dropout),
            nn.Linear(spec.hidden, num_outputs(signature)),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, num_classes], or values [B, V]."""
        maps = self.front(inputs)
        return self.head(self.stages(maps if maps.dim() == 4 else maps.unsqueeze(1)))
