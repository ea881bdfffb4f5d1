"""Slots of one cache compute what the module computes of each text by itself."""

import pytest
import torch

from eagleray import models
from eagleray.models.sampling import HasSlots
from eagleray.models.slots import Part
from eagleray.specs import Signature
from eagleray.specs.model import GptModel

VOCABULARY, CONTEXT = 258, 16
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def gpt(dtype=torch.float32, **changes):
    torch.manual_seed(0)
    spec = GptModel(**{"kind": "gpt", "width": 24, "num_heads": 3, "num_layers": 3} | changes)
    signature = Signature(
        input_kind="text",
        input_shape=(CONTEXT,),
        target_kind="tokens",
        target_shape=(CONTEXT,),
        vocabulary_size=VOCABULARY,
        tokenizer="bytes",
    )
    return models.build(spec, signature).to(dtype).eval()


def texts_of(num, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num, CONTEXT), generator=generator).tolist()


def last_logits(module, tokens):
    return module(torch.tensor([tokens], device=module.tokens.weight.device))[0, -1]


PASSES = [
    [(2, 5)],
    [(2, 1), (0, 3)],
    [(0, 1), (2, 1)],
    [(1, 4), (2, 2), (0, 1), (3, 1)],
    [(3, 1), (2, 1), (1, 1), (0, 1)],
    [(0, 1), (1, 1), (2, 1), (3, 1)],
    [(3, 9), (1, 1), (2, 5)],
    [(3, 4), (0, 9)],
]
"""(slot, number of its next tokens), pass after pass."""


def check(module, tolerance):
    texts, cache, num_given = texts_of(4), module.new_slots(4), [0] * 4
    for given in PASSES:
        parts = [Part(slot, texts[slot][num_given[slot] : num_given[slot] + num]) for slot, num in given]
        for slot, num in given:
            num_given[slot] += num
        expected_NV = torch.stack([last_logits(module, texts[slot][: num_given[slot]]) for slot, _ in given])
        torch.testing.assert_close(module.extend(parts, cache), expected_NV, atol=tolerance, rtol=0)
        assert cache.num_held == num_given


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@torch.no_grad()
def test_whatever_is_given_in_one_pass_each_part_has_the_logits_of_its_own_text(dtype):
    module = gpt(dtype)
    assert isinstance(module, HasSlots)
    check(module, TOLERANCE[dtype])


@torch.no_grad()
def test_a_copied_beginning_goes_on_like_the_original_and_the_rest_is_forgotten():
    module, texts = gpt(), texts_of(3)
    cache = module.new_slots(3)
    module.extend([Part(0, texts[0][:9]), Part(1, texts[1][:4])], cache)
    cache.copy(0, 2, 6)
    cache.copy(1, 1, 2)
    assert cache.num_held == [9, 2, 6]
    found_NV = module.extend([Part(2, texts[2][:2]), Part(1, texts[0][:1])], cache)
    for found_V, tokens in zip(
        found_NV, (texts[0][:6] + texts[2][:2], texts[1][:2] + texts[0][:1]), strict=True
    ):
        torch.testing.assert_close(found_V, last_logits(module, tokens), atol=1e-5, rtol=0)


@torch.no_grad()
def test_nothing_that_is_not_finite_is_left_in_a_wiped_slot():
    module, text = gpt(), texts_of(1)[0]
    cache = module.new_slots(2)
    for layer in cache.layers:
        layer.kv_2SHCD[:, 1] = torch.nan
    cache.wipe(1)
    module.extend([Part(0, text[:9])], cache)
    found_NV = module.extend([Part(0, text[9:10]), Part(1, text[:1])], cache)
    torch.testing.assert_close(found_NV[1], last_logits(module, text[:1]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_full_slot_refuses_a_step():
    module, text = gpt(), texts_of(1)[0]
    cache = module.new_slots(1)
    module.extend([Part(0, text)], cache)
    with pytest.raises(AssertionError, match="17 steps in a slot for 16"):
        module.extend([Part(0, text[:1])], cache)


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_too():
    check(gpt().cuda(), 1e-4)
