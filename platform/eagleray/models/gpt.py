"""A decoder-only transformer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from eagleray.models.attention import Block, initialise, rotation_of
from eagleray.specs import Signature
from eagleray.specs.model import GptModel


class Gpt(nn.Module):
    """Tokens [B, T] int64 -> logits of the next token [B, T, vocabulary]; T up to the signature's.

    Causal attention, rotary positions, pre-norm. Padding stands at the end and needs no mask: no earlier
    step sees it, and its own targets are ignored. Logits are products with the embedding itself, so the tied
    weight is one parameter and appears once in the state dict.
    """

    def __init__(self, spec: GptModel, signature: Signature):
        super().__init__()
        assert signature.vocabulary_size is not None
        self.context = signature.input_shape[0]
        self.tokens = nn.Embedding(signature.vocabulary_size, spec.width)
        self.head_width = spec.width // spec.num_heads
        self.dropout = nn.Dropout(spec.dropout)
        feed_forward = spec.feed_forward or 4 * spec.width
        self.blocks = nn.ModuleList(
            Block(spec.width, spec.num_heads, feed_forward, spec.dropout) for _ in range(spec.num_layers)
        )
        self.norm = nn.LayerNorm(spec.width)
        initialise(self, self.blocks, spec.width)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, vocabulary]."""
        rotation = rotation_of(tokens_BT.shape[1], self.head_width, self.tokens.weight)
        x_BTW = self.dropout(self.tokens(tokens_BT))
        for block in self.blocks:
            x_BTW = block(x_BTW, is_causal=True, rotation=rotation)
        return F.linear(self.norm(x_BTW), self.tokens.weight)
