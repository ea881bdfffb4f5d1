import pytest
import torch
from torch import nn

from eagleray.errors import EaglerayError
from eagleray.models import Sampler, complete
from eagleray.models.sampling import choose_each


class Successor(nn.Module):
    """The likeliest next token is this one plus one, and the shape of each input is kept."""

    def __init__(self):
        super().__init__()
        self.lengths = []

    def forward(self, tokens):
        self.lengths.append(tokens.shape[1])
        return nn.functional.one_hot((tokens + 1) % 10, 10).float() * 2


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def sample(temperature, seed=0, module=None, num_tokens=20):
    sampler = Sampler(temperature, generator=seeded(seed))
    return list(complete(module or Successor(), [3], num_tokens=num_tokens, sampler=sampler, context=4))


def test_temperature_zero_is_greedy():
    assert sample(0.0, num_tokens=5) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("seed", [1, -(2**63), 2**63 - 1])
def test_the_generator_alone_decides_a_sample(seed):
    torch.manual_seed(0)
    assert sample(1.0, seed=seed) == sample(1.0, seed=seed)
    assert sample(1.0, seed=seed) != sample(1.0, seed=2)


def test_the_model_never_sees_more_than_the_context():
    module = Successor()
    sample(0.0, module=module, num_tokens=6)
    assert module.lengths == [1, 2, 3, 4, 4, 4]


def test_the_model_is_as_before_after_the_iterator_is_closed_and_did_no_more_than_was_asked():
    module = Successor()
    tokens = complete(module, [3], num_tokens=5, sampler=Sampler(0), context=4)
    next(tokens)
    assert not module.training
    tokens.close()
    assert module.training
    assert module.lengths == [1]


PROBABILITIES = [0.1, 0.4, 0.2, 0.25, 0.05]


@pytest.mark.parametrize(
    ("top_p", "likely"),
    [
        (0, {1}),
        (0.39, {1}),
        (0.41, {1, 3}),
        (0.8, {1, 3, 2}),
        (0.94, {1, 3, 2, 0}),
        (1, {0, 1, 2, 3, 4}),
    ],
)
def test_a_sample_follows_the_softmax_of_the_likeliest_tokens(top_p, likely):
    sampler = Sampler(1, top_p, seeded(5))
    logits = torch.tensor(PROBABILITIES).log() + 3
    num_draws = 2000
    counts = torch.bincount(torch.tensor([sampler.choose(logits) for _ in range(num_draws)]), minlength=5)
    total = sum(PROBABILITIES[token] for token in likely)
    for token, probability in enumerate(PROBABILITIES):
        expected = probability / total if token in likely else 0.0
        deviation = (expected * (1 - expected) / num_draws) ** 0.5
        assert counts[token] / num_draws == pytest.approx(expected, abs=4 * deviation), (token, counts)


@pytest.mark.parametrize(
    ("temperature", "logits"),
    [(2, [-torch.inf, 1, -torch.inf]), (0.01, [-1, 1, -torch.inf]), (1e-320, [0.9, 1, -1])],
)
def test_an_impossible_token_is_never_drawn(temperature, logits):
    sampler = Sampler(temperature, generator=seeded(0))
    assert {sampler.choose(torch.tensor(logits)) for _ in range(50)} == {1}


def test_temperature_sharpens():
    logits = torch.tensor([1.0, 2.0])
    low, high = (
        sum(Sampler(temperature, generator=seeded(seed)).choose(logits) for seed in range(300))
        for temperature in (0.3, 2.0)
    )
    assert low > high + 50


@pytest.mark.parametrize("temperature", [0, 1])
def test_only_tokens_that_stand_for_text_are_chosen(temperature):
    sampler = Sampler(temperature, generator=seeded(0), num_choices=2)
    assert {sampler.choose(torch.tensor([0.0, 1.0, 50.0])) for _ in range(50)} <= {0, 1}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_finite_are_an_error(temperature, bad):
    with pytest.raises(EaglerayError, match=r"largest logit is (nan|inf)"):
        Sampler(temperature).choose(torch.tensor([1.0, bad, 0.0]))


def samplers_of(temperatures, num_choices=None):
    return [
        Sampler(temperature, (1.0, 0.9, 0.3, 0.0)[row % 4], seeded(row), num_choices)
        for row, temperature in enumerate(temperatures)
    ]


@pytest.mark.parametrize("temperatures", [[0.7] * 9, [0, 0, 0], [0, 1.3, 0, 1e-320, 0.01, 2, 0.5], [1]])
@pytest.mark.parametrize("num_choices", [None, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_all_at_once_each_chooses_what_it_would_alone(temperatures, num_choices, dtype):
    together, alone = (samplers_of(temperatures, num_choices) for _ in range(2))
    for seed in range(20):
        logits_NV = 3 * torch.randn(len(temperatures), 57, generator=seeded(seed)).to(dtype)
        expected = [sampler.choose(logits_V) for sampler, logits_V in zip(alone, logits_NV, strict=True)]
        assert choose_each(logits_NV, together) == expected
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.generator.get_state(), other.generator.get_state())


def test_all_at_once_ties_and_impossible_tokens_are_as_alone():
    rows = [[1, 1, -torch.inf, 1.0], [2, -torch.inf, 2, -torch.inf], [-0.0, 0.0, -0.0, 0.0], [-1, -1, -2, -1]]
    logits_NV = torch.tensor(rows).repeat(2, 1)
    for temperature in (0.5, 1.0):
        together, alone = (samplers_of([temperature] * 8) for _ in range(2))
        for _ in range(30):
            expected = [sampler.choose(logits_V) for sampler, logits_V in zip(alone, logits_NV, strict=True)]
            assert choose_each(logits_NV, together) == expected


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_all_at_once_logits_that_are_not_finite_are_an_error_of_their_own_row(bad):
    logits_NV = torch.tensor([[1.0, bad, 0.0], [1.0, 5.0, 0.0], [-torch.inf] * 3, [bad, 1.0, 0.0]])
    broken, fine, impossible, drawn = choose_each(logits_NV, samplers_of([0, 0, 1, 1]))
    assert fine == 1
    for error in (broken, impossible, drawn):
        assert isinstance(error, EaglerayError)
    assert "largest logit is -inf" in str(impossible)
