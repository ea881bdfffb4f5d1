import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.compression.kernels import native, passes_for
from eagleray.compression.kernels.passes import EagerPasses

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


@settings(max_examples=40, deadline=None)
@given(
    st.one_of(st.integers(0, 40), st.integers(0, 9000)),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.3, 2.0, math.inf]),
    st.booleans(),
    st.sampled_from([torch.int32, torch.int16, torch.uint16]),
    st.sampled_from([0, 7, 10_000]),
)
def test_select_is_the_reference_s(numel, seed, threshold, with_residual, dtype, room):
    source = numbers(numel + 3, seed)[3:]
    residual = numbers(numel, seed + 1) if with_residual else None
    told = []
    for each in both():
        offsets, values = torch.full((room,), -1).to(dtype), torch.full((room,), 9.0)
        told.append(
            (each.select(source, threshold, offsets, values, residual=residual, gain=0.7), offsets, values)
        )
    v = source if residual is None else source + residual * 0.7
    assert told[0][0] == told[1][0] == int((v.abs() >= threshold).sum())
    assert torch.equal(told[0][1], told[1][1])
    assert torch.equal(told[0][2].view(torch.int32), told[1][2].view(torch.int32))


@settings(max_examples=25, deadline=None)
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
    assert compiled.first_bad(source, table) == reference.first_bad(source, table)


@pytest.mark.parametrize("which", [0, 1])
def test_what_does_not_fit_is_an_error(which):
    each, source = both()[which], torch.zeros(70_000)
    with pytest.raises(IndexError, match="span"):
        each.used(source, torch.tensor([[1, 70_000]]))
    with pytest.raises(IndexError, match="uint16"):
        each.select(source, 1.0, torch.zeros(3, dtype=torch.uint16), torch.zeros(3))
    with pytest.raises(IndexError, match="fewer"):
        each.select(source, 1.0, torch.zeros(3, dtype=torch.int32), torch.zeros(2))
