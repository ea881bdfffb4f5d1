"""A decoder-only transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from eagleray.models.attention import Block, initialise, rotation_of
from eagleray.models.cache import KeyValueCache
from eagleray.models.slots import Part, SlottedCache
from eagleray.specs import Signature
from eagleray.specs.model import GptModel


class Gpt(nn.Module):
    """Tokens [B, T] int64 -> logits of the next token [B, T, vocabulary]; T up to the signature's.

    Causal attention, rotary positions, pre-norm. Padding stands at the end and needs no mask: no earlier
    step sees it, and its own targets are ignored. Logits are products with the embedding itself, so the tied
    weight is one parameter and appears once in the state dict.

    To generate, `prefill` a cache with the tokens so far and `step` with each new one: the logits are those
    of `forward` (in evaluation mode) on all tokens since the prefill. Several texts at once `extend` the
    slots of one cache, each by as many tokens as it has.
    """

    def __init__(self, spec: GptModel, signature: Signature):
        super().__init__()
        assert signature.vocabulary_size is not None
        self.context = signature.input_shape[0]
        self.tokens = nn.Embedding(signature.vocabulary_size, spec.width)
        self.num_heads = spec.num_heads
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

    def new_cache(self, batch_size: int = 1) -> KeyValueCache:
        """An empty cache for the signature's number of steps, on the model's device."""
        return KeyValueCache(
            len(self.blocks),
            batch_size=batch_size,
            num_heads=self.num_heads,
            capacity=self.context,
            head_width=self.head_width,
            like=self.tokens.weight,
        )

    def prefill(self, tokens_BT: Tensor, cache: KeyValueCache) -> Tensor:
        """Logits [B, vocabulary] after these tokens, which alone `cache` holds afterwards (T <= capacity)."""
        cache.clear()
        return self._extend(tokens_BT, cache, is_causal=True)

    def step(self, tokens_B: Tensor, cache: KeyValueCache) -> Tensor:
        """Logits [B, vocabulary] after one more token, which `cache` holds too afterwards."""
        return self._extend(tokens_B[:, None], cache, is_causal=False)

    def new_slots(self, num_slots: int) -> SlottedCache:
        """Empty slots for the signature's number of steps each, on the model's device."""
        return SlottedCache(
            len(self.blocks),
            num_slots=num_slots,
            num_heads=self.num_heads,
            capacity=self.context,
            head_width=self.head_width,
            like=self.tokens.weight,
        )

    def extend(self, parts: Sequence[Part], cache: SlottedCache) -> Tensor:
        """Logits [N, vocabulary] after the last token of each part, all of which `cache` holds afterwards.

        One pass for all parts, each of another slot. Evaluation mode only: nothing is dropped out.
        """
        plan = cache.begin(parts)
        x_RW = self.tokens(plan.tokens_R)
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x_RW = cast(Block, block).extend(x_RW, layer)
        x_NW = x_RW if plan.last_N is None else x_RW[plan.last_N]
        return F.linear(self.norm(x_NW), self.tokens.weight)

    def _extend(self, tokens_BT: Tensor, cache: KeyValueCache, *, is_causal: bool) -> Tensor:
        rotation = cache.rotation(tokens_BT.shape[1])
        x_BTW = self.dropout(self.tokens(tokens_BT))
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x_BTW = block(x_BTW, is_causal=is_causal, rotation=rotation, cache=layer)
        return F.linear(self.norm(x_BTW[:, -1]), self.tokens.weight)
