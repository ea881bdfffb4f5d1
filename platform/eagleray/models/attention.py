"""The block that the transformer encoder and the GPT stack.

Names: B batch, T time steps, W width, H heads, D = W / H.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from eagleray.models.cache import LayerCache
    from eagleray.models.slots import SlottedLayer

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of each position's angles, each [T, D / 2]."""


def rotation_of(num_steps: int, head_width: int, like: Tensor) -> Rotation:
    """Angles position x 10000^(-2i / D) of positions 0..num_steps-1, on the device and in the type of `like`.

    Source: Su et al. 2021 (RoFormer), section 3.2.
    """
    frequencies = 10_000.0 ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angles_TD = torch.arange(num_steps, dtype=torch.float64)[:, None] * frequencies
    return angles_TD.cos().to(like), angles_TD.sin().to(like)


def rotate(x_BHTD: Tensor, rotation: Rotation) -> Tensor:
    """Each pair (i, i + D / 2) of the last dimension turned by its position's angle."""
    cos, sin = rotation
    first, second = x_BHTD.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention, [B, T, W] -> [B, T, W]."""

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(
        self,
        x_BTW: Tensor,
        keep_BT: Tensor | None,
        is_causal: bool,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """`keep_BT` (bool) is False where a step is padding that no step may look at.

        With a `rotation` queries and keys are turned by their positions. With a `cache` the steps also look
        at those it holds, and are held by it afterwards; `is_causal` then needs an empty one.
        """
        heads = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.query_key_value(x_BTW).chunk(3, dim=-1)
        )
        q_BHTD, k_BHTD, v_BHTD = heads
        if rotation is not None:
            q_BHTD, k_BHTD = rotate(q_BHTD, rotation), rotate(k_BHTD, rotation)
        if cache is not None:
            k_BHTD, v_BHTD = cache.extend(k_BHTD, v_BHTD)
        mask = None if keep_BT is None else keep_BT[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        mixed_BHTD = F.scaled_dot_product_attention(
            q_BHTD, k_BHTD, v_BHTD, attn_mask=mask, dropout_p=dropout, is_causal=is_causal
        )
        return self.project(mixed_BHTD.transpose(1, 2).flatten(2))

    def extend(self, x_RW: Tensor, layer: SlottedLayer) -> Tensor:
        """[R, W] -> [R, W]: each row is a step of one of the layer's slots (evaluation mode only)."""
        qkv_R3HD = self.query_key_value(x_RW).unflatten(-1, (3, self.num_heads, -1))
        return self.project(layer.attend(qkv_R3HD).flatten(1))


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a layer norm and added to its input (pre-norm)."""

    def __init__(self, width: int, num_heads: int, feed_forward: int, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads, dropout)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, feed_forward), nn.GELU(), nn.Linear(feed_forward, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_BTW: Tensor,
        keep_BT: Tensor | None = None,
        is_causal: bool = False,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """[B, T, W] -> [B, T, W]; for the arguments see `Attention`."""
        mixed_BTW = self.attention(self.attention_norm(x_BTW), keep_BT, is_causal, rotation, cache)
        x_BTW = x_BTW + self.dropout(mixed_BTW)
        return x_BTW + self.dropout(self.feed(self.feed_norm(x_BTW)))

    def extend(self, x_RW: Tensor, layer: SlottedLayer) -> Tensor:
        """[R, W] -> [R, W]; see `Attention.extend`."""
        x_RW = x_RW + self.attention.extend(self.attention_norm(x_RW), layer)
        return x_RW + self.feed(self.feed_norm(x_RW))


def initialise(model: nn.Module, blocks: nn.ModuleList, width: int) -> None:
    """Draw every linear and embedding weight of `model` from N(0, 1 / width); biases are 0 afterwards.

    The projections that end a residual branch of `blocks` are smaller by sqrt(2 x layers), so that the
    stream's variance does not grow with depth. (GPT-2's fixed 0.02 suits widths near 1,000; at width 96, for
    the embedding alone, it cost 0.4 nats after 150 steps like those of examples/train/gpt.toml.)

    Source: Radford et al. 2019 (GPT-2), section 2.3, for the scaling by depth.
    """
    std = width**-0.5
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for name, parameter in blocks.named_parameters():
        if name.endswith(("attention.project.weight", "feed.2.weight")):
            nn.init.normal_(parameter, std=std / (2 * len(blocks)) ** 0.5)
