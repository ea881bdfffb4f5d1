"""With a cache the GPT computes what it computes without one, on the window that the cache holds."""

import pytest
import torch
from torch import nn

from eagleray import models
from eagleray.models import Sampler
from eagleray.models.sampling import Cached, HasCache
from eagleray.specs import Signature
from eagleray.specs.model import GptModel

VOCABULARY = 258
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def gpt(context, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    spec = GptModel(**{"kind": "gpt", "width": 24, "num_heads": 3, "num_layers": 3} | changes)
    signature = Signature(
        input_kind="text",
        input_shape=(context,),
        target_kind="tokens",
        target_shape=(context,),
        vocabulary_size=VOCABULARY,
        tokenizer="bytes",
    )
    return models.build(spec, signature).to(dtype).eval()


def tokens_of(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_given", [1, 5, 16])
def test_steps_after_a_prefill_have_the_logits_of_all_tokens_at_once(num_given, dtype):
    module, tokens_BT = gpt(16, dtype), tokens_of(3, 16)
    cache = module.new_cache(batch_size=3)
    with torch.no_grad():
        expected_BTV = module(tokens_BT)
        logits = [module.prefill(tokens_BT[:, :num_given], cache)]
        logits += [module.step(tokens_BT[:, position], cache) for position in range(num_given, 16)]
    found_BTV = torch.stack(logits, dim=1)
    assert cache.num_steps == 16
    torch.testing.assert_close(found_BTV, expected_BTV[:, num_given - 1 :], atol=TOLERANCE[dtype], rtol=0)


def test_a_prefill_forgets_what_was_held():
    module, tokens_BT = gpt(16), tokens_of(2, 9)
    cache = module.new_cache()
    with torch.no_grad():
        fresh = module.prefill(tokens_BT[:1], cache)
        module.prefill(tokens_BT[1:], cache)
        module.step(tokens_BT[1, :1], cache)
        assert torch.equal(module.prefill(tokens_BT[:1], cache), fresh)


@pytest.mark.parametrize("context", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("num_prompt", [1, 6, 40])
@torch.no_grad()
def test_the_window_hops_and_never_holds_less_than_half_the_context(context, num_prompt):
    module, tokens = gpt(context), tokens_of(num_prompt + 60).tolist()
    window, held = Cached(module, context), []
    for end in range(num_prompt, len(tokens)):
        logits = window.next_logits(tokens[:end])
        held.append(window.num_held)
        assert min(end, max(1, context // 2)) <= window.num_held <= min(end, context)
        expected = module(torch.tensor([tokens[end - window.num_held : end]]))[0, -1]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    growth = [*range(max(1, context // 2), context + 1)]
    assert held == [*range(min(num_prompt, context), context + 1), *growth * 60][: len(held)]


class WithoutCache(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, tokens):
        return self.module(tokens)


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_tokens_are_the_same_with_and_without_a_cache_while_all_fit(temperature):
    module, texts = gpt(32), []
    assert isinstance(module, HasCache)
    assert not isinstance(WithoutCache(module), HasCache)
    for each in (module, WithoutCache(module)):
        sampler = Sampler(temperature, 0.9, torch.Generator().manual_seed(3))
        texts.append(list(models.complete(each, [65, 66], num_tokens=30, sampler=sampler, context=32)))
    assert texts[0] == texts[1]


def test_dropout_is_off_while_it_completes():
    module = gpt(16, dropout=0.5).train()
    texts = {
        tuple(models.complete(module, [9], num_tokens=12, sampler=Sampler(0), context=16)) for _ in "123"
    }
    assert len(texts) == 1
    assert module.training


def test_a_full_cache_refuses_a_step():
    module = gpt(4)
    cache = module.new_cache()
    with torch.no_grad():
        module.prefill(tokens_of(1, 4), cache)
        with pytest.raises(AssertionError, match="5 steps in a cache for 4"):
            module.step(tokens_of(1), cache)


@pytest.mark.gpu
def test_on_a_gpu_too():
    module, tokens_BT = gpt(16).cuda(), tokens_of(1, 16).cuda()
    with torch.no_grad():
        window = Cached(module, 16)
        for end in range(1, 17):
            logits = window.next_logits(tokens_BT[0, :end].tolist())
            torch.testing.assert_close(logits, module(tokens_BT[:, :end])[0, -1], atol=1e-4, rtol=0)
