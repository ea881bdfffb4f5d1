"""Text from a trained next-token model."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor, nn


def complete(
    model: nn.Module,
    tokens: Tensor,
    *,
    num_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
    context: int,
) -> Generator[int]:
    """Yield `num_tokens` tokens that follow `tokens` [1, T] int64 (T >= 1, on the model's device).

    Each is drawn from softmax(logits / temperature), the likeliest one at temperature 0, given the last
    `context` tokens. The model is in evaluation mode until the iterator ends or is closed, then as before.
    """
    was_training = model.training
    model.eval()
    try:
        for _ in range(num_tokens):
            with torch.no_grad():
                logits = model(tokens[:, -context:])[:, -1].double()
            chosen = _choose(logits, temperature, generator)
            tokens = torch.cat([tokens, chosen], dim=1)
            yield int(chosen)
    finally:
        model.train(was_training)


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One token [1, 1] from logits [1, vocabulary]."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)
