"""Tokens from a trained next-token model: which logits, and which token of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from eagleray.errors import EaglerayError
from eagleray.models.cache import KeyValueCache
from eagleray.models.slots import Part, SlottedCache


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
            raise _not_finite(float(highest))
        if self.temperature == 0:
            return int(logits_V.argmax())
        weights_V, tokens_V = (
            ((logits_V - highest) / self.temperature).exp().sort(descending=True, stable=True)
        )
        sums_V = weights_V.cumsum(0)
        num_likely = int(torch.searchsorted(sums_V, self.top_p * sums_V[-1])) + 1
        sums = sums_V[:num_likely]
        drawn = self.draw() * sums[-1]
        return int(tokens_V[: len(sums)][torch.searchsorted(sums[:-1], drawn, right=True)])

    def draw(self) -> float:
        """The generator's next number in [0, 1)."""
        return torch.rand((), dtype=torch.float64, generator=self.generator).item()


def log_probability(logits_V: Tensor, token: int, num_choices: int | None) -> float:
    """Of `token`, among the first `num_choices`, all where None; natural logarithm, by softmax(logits)."""
    return float(logits_V[:num_choices].to("cpu", torch.float64).log_softmax(-1)[token])


def choose_each(logits_NV: Tensor, samplers: Sequence[Sampler]) -> list[int | EaglerayError]:
    """The token that each sampler's `choose` takes of its own row; an error where that raises it.

    All at once for samplers of the same `num_choices`; each generator gives the numbers it would give alone.
    """
    num_choices = {sampler.num_choices for sampler in samplers}
    assert len(num_choices) == 1, f"samplers of one vocabulary: {num_choices}"
    logits_NV = logits_NV[:, : num_choices.pop()].cpu()
    highest_N1, likeliest_N1 = logits_NV.max(-1, keepdim=True)
    chosen: list[int | EaglerayError] = likeliest_N1[:, 0].tolist()
    rows: list[int] = []
    for row, (highest, sampler) in enumerate(zip(highest_N1[:, 0].tolist(), samplers, strict=True)):
        if not math.isfinite(highest):
            chosen[row] = _not_finite(highest)
        elif sampler.temperature != 0:
            rows.append(row)
    if rows:
        drawing_NV = logits_NV if len(rows) == len(chosen) else logits_NV[rows]
        for row, token in zip(rows, _draw(drawing_NV, [samplers[row] for row in rows]), strict=True):
            chosen[row] = token
    return chosen


def _draw(logits_NV: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """`Sampler.choose` of rows whose largest logit is finite."""
    settings = [(sampler.temperature, sampler.top_p, sampler.draw()) for sampler in samplers]
    temperature_N1, top_p_N1, drawn_N1 = torch.tensor(settings, dtype=torch.float64).T[..., None]
    tokens_NV = _ranking(logits_NV)
    falling_NV = logits_NV.gather(-1, tokens_NV).double()
    sums_NV = ((falling_NV - falling_NV[:, :1]) / temperature_N1).exp_().cumsum(-1)
    last_N1 = torch.searchsorted(sums_NV, top_p_N1 * sums_NV[:, -1:])
    place_N1 = torch.searchsorted(sums_NV, drawn_N1 * sums_NV.gather(-1, last_N1), right=True)
    return tokens_NV.gather(-1, place_N1.minimum(last_N1))[:, 0].tolist()


def _ranking(logits_NV: Tensor) -> Tensor:
    """The tokens of each row by falling logit, equal ones by number.

    A stable sort of floats takes 14 us for a row of 256 (measured among other work, no two rows alike); whole
    numbers that no two tokens share need none, and numpy sorts them with vector instructions in 0.3 us.
    """
    if logits_NV.dtype == torch.float64:
        return logits_NV.sort(dim=-1, descending=True, stable=True).indices
    bits_NV = (logits_NV.float() + 0.0).numpy().view(np.int32)  # + 0: of -0 as well
    # As whole numbers, floats of one sign are in order already; negative ones are in falling order.
    keys_NV = (bits_NV ^ ((bits_NV >> 31) & 0x7FFFFFFF)).astype(np.int64)
    keys_NV = (~keys_NV << 32) | np.arange(keys_NV.shape[1])
    keys_NV.sort(axis=1)
    return torch.from_numpy(keys_NV & 0xFFFFFFFF)


def _not_finite(highest: float) -> EaglerayError:
    return EaglerayError(f"the model's largest logit is {highest}: its weights cannot be right")


def complete(
    module: nn.Module,
    tokens: Sequence[int],
    *,
    num_tokens: int,
    sampler: Sampler,
    context: int,
    on_chosen: Callable[[Tensor, int], None] | None = None,
) -> Generator[int]:
    """Yield `num_tokens` tokens that follow `tokens` (at least one), each by the logits of those before it.

    A module that has a cache (`HasCache`) computes each token once; its window is `Cached`'s. Any other sees
    the last `context` tokens each time. The module is in evaluation mode until the iterator ends or is
    closed, then as before; nothing is computed that was not asked for.

    `on_chosen` is called with the logits [vocabulary] and the token before each is yielded.
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
            if on_chosen is not None:
                on_chosen(logits_V, seen[-1])
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


@runtime_checkable
class HasSlots(Protocol):
    """A module that keeps what it computed of several texts at once, as `Gpt` does."""

    def new_slots(self, num_slots: int) -> SlottedCache:
        """Empty slots."""
        ...

    def extend(self, parts: Sequence[Part], cache: SlottedCache) -> Tensor:
        """Logits [N, vocabulary] after each part, all of which `cache` holds too afterwards."""
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
