"""The block that the transformer encoder and the GPT stack.

Names: B batch, T time steps, W width, H heads, D = W / H.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.02


class Attention(nn.Module):
    """Multi-head self-attention, [B, T, W] -> [B, T, W]."""

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x_BTW: Tensor, keep_BT: Tensor | None, is_causal: bool) -> Tensor:
        """`keep_BT` (bool) is False where a step is padding that no step may look at."""
        heads = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.query_key_value(x_BTW).chunk(3, dim=-1)
        )
        q_BHTD, k_BHTD, v_BHTD = heads
        mask = None if keep_BT is None else keep_BT[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        mixed_BHTD = F.scaled_dot_product_attention(
            q_BHTD, k_BHTD, v_BHTD, attn_mask=mask, dropout_p=dropout, is_causal=is_causal
        )
        return self.project(mixed_BHTD.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a layer norm and added to its input (pre-norm)."""

    def __init__(self, width: int, num_heads: int, feed_forward: int, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads, dropout)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, feed_forward), nn.GELU(), nn.Linear(feed_forward, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTW: Tensor, keep_BT: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B, T, W] -> [B, T, W]."""
        x_BTW = x_BTW + self.dropout(self.attention(self.attention_norm(x_BTW), keep_BT, is_causal))
        return x_BTW + self.dropout(self.feed(self.feed_norm(x_BTW)))


def initialise(model: nn.Module, blocks: nn.ModuleList) -> None:
    """Draw every linear and embedding weight of `model` from N(0, 0.02^2); biases are 0 afterwards.

    The projections that end a residual branch of `blocks` get 0.02 / sqrt(2 x layers), so that the stream's
    variance does not grow with depth.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INIT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for name, parameter in blocks.named_parameters():
        if name.endswith(("attention.project.weight", "feed.2.weight")):
            nn.init.normal_(parameter, std=INIT_STD / (2 * len(blocks)) ** 0.5)
