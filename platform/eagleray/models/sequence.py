"""Any input as a sequence of steps, for the models that walk or attend over steps.

Names: B batch, T time steps, D features of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eagleray.models.audio import log_mel
from eagleray.models.sizes import padding_token
from eagleray.specs import Signature


class Steps(nn.Module):
    """Text and tokens [B, T] are embedded; audio [B, S] gives log-mel frames; image [B, C, H, W] its rows.

    Tabular input [B, T, D] is steps already. `forward` returns the steps [B, T, D] and a bool mask [B, T],
    False at padding; the mask is None where the input cannot be padded. A sample of padding alone keeps all
    its steps, so that nothing divides by zero.
    """

    def __init__(self, signature: Signature, embedding: int):
        super().__init__()
        self.kind = signature.input_kind
        self.padding = padding_token(signature)
        self.front: nn.Module = nn.Identity()
        if self.kind in ("text", "tokens"):
            assert signature.vocabulary_size is not None
            self.front = nn.Embedding(signature.vocabulary_size, embedding)
            self.num_steps, self.size = signature.input_shape[0], embedding
        elif self.kind == "audio":
            self.front = front = log_mel(signature)
            self.num_steps, self.size = front.num_frames, front.num_mels
        elif self.kind == "image":
            channels, height, width = signature.input_shape
            self.num_steps, self.size = height, channels * width
        else:
            self.num_steps, self.size = signature.input_shape

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Steps [B, T, D], and where they are not padding [B, T]."""
        if self.kind == "image":
            return inputs.transpose(1, 2).flatten(2), None
        steps = self.front(inputs)
        if self.kind not in ("text", "tokens") or self.padding is None:
            return steps, None
        keep = inputs != self.padding
        return steps, keep | ~keep.any(dim=1, keepdim=True)


def mean_over_steps(x_BTD: Tensor, keep_BT: Tensor | None) -> Tensor:
    """Mean [B, D] over the steps that are not padding."""
    if keep_BT is None:
        return x_BTD.mean(dim=1)
    kept = torch.where(keep_BT[..., None], x_BTD, 0)
    return kept.sum(dim=1) / keep_BT.sum(dim=1, keepdim=True).to(x_BTD.dtype)
