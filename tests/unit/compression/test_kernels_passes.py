import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eagleray.compression.kernels import native, passes_for
from eagleray.compression.kernels.passes import EagerPasses
from support.examples import examples

SPECIALS = [0.0, -0.0, 1e-45, math.nan, math.inf, -math.inf]


def both():
    compiled = passes_for("cpu")
    assert isinstance(compiled, native.NativePasses), "these tests need a C++ compiler (apt install g++)"
    return compiled, EagerPasses()


def numbers(numel, seed):
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(numel, generator=made)
    for value in SPECIALS:
        x[torch.rand(numel, generator=made) < 0.01] = value
    return x


@examples(25)
@given(st.lists(st.integers(0, 9000), max_size=6), st.integers(0, 2**31), st.booleans())
def test_spans_are_the_reference_s(sizes, seed, with_specials):
    source = numbers(sum(sizes) + 1, seed)
    source = source if with_specials else source.nan_to_num(0.5, 0.5, 0.5)
    spans, at = [], 1
    for index, size in enumerate(sizes):
        if index % 3 == 1:
            source[at : at + size] = -0.0
            if size > 5000:
                source[at + size - 1] = 1e-45
        spans.append((at, size))
        at += size
    table = torch.tensor(spans, dtype=torch.int64).view(-1, 2)
    compiled, reference = both()
    assert torch.equal(compiled.used(source, table), reference.used(source, table))
    assert torch.allclose(
        compiled.absmax(source, table), reference.absmax(source, table), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("which", [0, 1])
def test_what_does_not_fit_is_an_error(which):
    each, source = both()[which], torch.zeros(70_000)
    with pytest.raises(IndexError, match="span"):
        each.used(source, torch.tensor([[1, 70_000]]))
