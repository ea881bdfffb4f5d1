"""Tokens from a trained next-token model: which logits, and which token of them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from eagleray.errors import EaglerayError
from eagleray.models.cache import KeyValueCache


@dataclass(frozen=True)
class Sampler:
    """Chooses a token by logits; only the `generator`'s state changes.

    Draws on the CPU in float64, one number of the generator per token, so that neither the device nor the
    other requests of a batch have a part in it.
    """

    temperature: float
    """The likeliest token at 0; else it is drawn from softmax(logits / temperature)."""
    top_p: float = 1.0
    """Only the likeliest tokens are drawn, as few as reach this probability together (at least one)."""
    generator: torch.Generator | None = None
    """On the CPU; torch's own if None."""
    num_choices: int | None = None
    """Only tokens below it are chosen: those that stand for text. All if None."""

    def choose(self, logits_V: Tensor) -> int:
        """One token. Raises: EaglerayError if the largest logit is not a finite number.

        Source: Holtzman et al. 2020 (The Curious Case of Neural Text Degeneration), section 3.1, for top_p.
        """
        logits_V = logits_V[: self.num_choices].to("cpu", torch.float64)
        highest = logits_V.max()
        if not highest.isfinite():
            raise EaglerayError(f"the model's largest logit is {float(highest)}: its weights cannot be right")
        if self.temperature == 0:
            return int(logits_V.argmax())
        weights_V, tokens_V = (
            ((logits_V - highest) / self.temperature).exp().sort(descending=True, stable=True)
        )
        sums_V = weights_V.cumsum(0)
        num_likely = int(torch.searchsorted(sums_V, self.top_p * sums_V[-1])) + 1
        sums = sums_V[:num_likely]
        drawn = torch.rand((), dtype=torch.float64, generator=self.generator) * sums[-1]
        return int(tokens_V[: len(sums)][torch.searchsorted(sums[:-1], drawn, right=True)])


def complete(
    module: nn.Module, tokens: Sequence[int], *, num_tokens: int, sampler: Sampler, context: int
) -> Generator[int]:
    """Yield `num_tokens` tokens that follow `tokens` (at least one), each by the logits of those before it.

    A module that has a cache (`HasCache`) computes each token once; its window is `Cached`'s. Any other sees
    the last `context` tokens each time. The module is in evaluation mode until the iterator ends or is
    closed, then as before; nothing is computed that was not asked for.
    """
    seen = list(tokens)
    window = Cached(module, context) if isinstance(module, HasCache) else Recomputed(module, context)
    was_training = module.training
    module.eval()
    try:
        for _ in range(num_tokens):
            with torch.no_grad():
                logits_V = window.next_logits(seen)
            seen.append(sampler.choose(logits_V))
            yield seen[-1]
    finally:
        module.train(was_training)


@runtime_checkable
class HasCache(Protocol):
    """A module that keeps what it computed of earlier tokens, as `Gpt` does."""

    def new_cache(self, batch_size: int = 1) -> KeyValueCache:
        """An empty cache."""
        ...

    def prefill(self, tokens_BT: Tensor, cache: KeyValueCache) -> Tensor:
        """Logits [B, vocabulary] after these tokens, which alone `cache` holds afterwards."""
        ...

    def step(self, tokens_B: Tensor, cache: KeyValueCache) -> Tensor:
        """Logits [B, vocabulary] after one more token, which `cache` holds too afterwards."""
        ...


class Recomputed:
    """Logits of the last `context` tokens, all of them computed each time."""

    def __init__(self, module: nn.Module, context: int):
        self.module = module
        self.context = context
        self.device = _device_of(module)

    def next_logits(self, tokens: Sequence[int]) -> Tensor:
        """[vocabulary]."""
        given = torch.tensor([tokens[-self.context :]], device=self.device)
        return self.module(given)[0, -1]


class Cached:
    """Logits of the newest tokens, each computed once: of all while they fit, then of a window that hops.

    Where `context` tokens are held, the older half is dropped and the newer half computed anew, from position
    0, as training saw it. So the logits are always those of the module itself on the last `num_held` tokens,
    and that is never less than half the context once so many were there. Sliding by one token would keep
    keys and values that were computed from tokens which have left: the module on no window at all would
    give such logits, and models trained without it degrade (Xiao et al. 2023, StreamingLLM, section 3.1).
    """

    def __init__(self, module: HasCache, context: int):
        self.module = module
        self.cache = module.new_cache()
        self.context = min(context, self.cache.capacity)
        self.device = self.cache.layers[0].k_BHSD.device

    @property
    def num_held(self) -> int:
        """So many of the newest tokens decided the last logits."""
        return self.cache.num_steps

    def next_logits(self, tokens: Sequence[int]) -> Tensor:
        """[vocabulary]; `tokens` are those of the call before and one more."""
        if 0 < self.num_held < self.context:
            return self.module.step(torch.tensor(tokens[-1:], device=self.device), self.cache)[0]
        kept = self.context if self.num_held == 0 else max(1, self.context // 2)
        return self.module.prefill(torch.tensor([tokens[-kept:]], device=self.device), self.cache)[0]


def _device_of(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
