import torch
from torch import nn

from eagleray.models import complete


class Successor(nn.Module):
    """The likeliest next token is this one plus one, and the shape of each input is kept."""

    def __init__(self):
        super().__init__()
        self.lengths = []

    def forward(self, tokens):
        self.lengths.append(tokens.shape[1])
        return nn.functional.one_hot((tokens + 1) % 10, 10).float() * 2


def sample(temperature, seed=0, model=None, num_tokens=20):
    generator = torch.Generator().manual_seed(seed)
    arguments = {"num_tokens": num_tokens, "temperature": temperature, "generator": generator, "context": 4}
    return list(complete(model or Successor(), torch.tensor([[3]]), **arguments))


def test_temperature_zero_is_greedy():
    assert sample(0.0, num_tokens=5) == [4, 5, 6, 7, 8]


def test_the_generator_alone_decides_a_sample():
    assert sample(1.0, seed=1) == sample(1.0, seed=1)
    assert sample(1.0, seed=1) != sample(1.0, seed=2)


def test_the_model_never_sees_more_than_the_context():
    model = Successor()
    sample(0.0, model=model, num_tokens=6)
    assert model.lengths == [1, 2, 3, 4, 4, 4]


def test_the_model_is_as_before_after_the_iterator_is_closed():
    model = Successor()
    tokens = complete(model, torch.tensor([[3]]), num_tokens=5, temperature=0, generator=None, context=4)
    next(tokens)
    assert not model.training
    tokens.close()
    assert model.training
