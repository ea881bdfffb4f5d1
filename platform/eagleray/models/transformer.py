"""The transformer encoder."""

from __future__ import annotations

from torch import Tensor, nn

from eagleray.models.attention import Block, initialise
from eagleray.models.sequence import Steps, mean_over_steps
from eagleray.models.sizes import num_outputs
from eagleray.specs import Signature
from eagleray.specs.model import TransformerModel


class Transformer(nn.Module):
    """Every step of the input (see `Steps`) attends to every other that is not padding.

    Class and value targets: the mean over the steps -> [B, num_classes] or [B, V]. Token targets: every step
    predicts -> [B, T, vocabulary]. Learned positions, pre-norm.
    """

    def __init__(self, spec: TransformerModel, signature: Signature):
        super().__init__()
        self.per_step = signature.target_kind == "tokens"
        self.steps = Steps(signature, spec.width)
        is_embedded = signature.input_kind in ("text", "tokens")
        self.widen = nn.Identity() if is_embedded else nn.Linear(self.steps.size, spec.width)
        self.positions = nn.Embedding(self.steps.num_steps, spec.width)
        self.dropout = nn.Dropout(spec.dropout)
        feed_forward = spec.feed_forward or 4 * spec.width
        self.blocks = nn.ModuleList(
            Block(spec.width, spec.num_heads, feed_forward, spec.dropout) for _ in range(spec.num_layers)
        )
        self.norm = nn.LayerNorm(spec.width)
        self.head = nn.Linear(spec.width, num_outputs(signature))
        initialise(self, self.blocks, spec.width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits or values [B, N]; for token targets logits [B, T, vocabulary]."""
        steps, keep = self.steps(inputs)
        x_BTW = self.dropout(self.widen(steps) + self.positions.weight[: steps.shape[1]])
        for block in self.blocks:
            x_BTW = block(x_BTW, keep)
        x_BTW = self.norm(x_BTW)
        return self.head(x_BTW if self.per_step else mean_over_steps(x_BTW, keep))
