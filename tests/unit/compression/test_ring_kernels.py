import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eagleray.compression.kernels import native, native_ring, ring, ring_for
from support.examples import examples

SPECIALS = [0.0, -0.0, 1e-45, -1e-45, 1e-39, 2.0**-126, 1e30, -3.4e38, math.inf, -math.inf, math.nan]
"""The last three are no finite numbers."""


def both():
    functions = native.load()
    assert functions is not None, "these tests need a C++ compiler (apt install g++)"
    return native_ring.NativeRing(functions), ring.EagerRing()


def numbers(numel, seed, specials=()):
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(numel, generator=made) * torch.randn(numel, generator=made).exp()
    for value in specials:
        x[torch.rand(numel, generator=made) < 0.02] = value
    return x


def quanta_of(numel, block, levels, seed):
    """Some too small for the numbers, some too large."""
    made = torch.Generator().manual_seed(seed)
    return torch.rand(-(-numel // block), generator=made).add(0.01).mul(2.0 / levels)


def same(a, b):
    """Bit for bit, but any NaN is like another."""
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all())


@examples(60)
@given(
    st.one_of(st.integers(0, 40), st.integers(41, 1500), st.sampled_from([65_536, 65_537, 131_328])),
    st.sampled_from([8, 64, 256, 4096]),
    st.sampled_from([1, 31, 42, 127]),
    st.sampled_from([1.0, 1024.0, 0.3]),
    st.integers(0, len(SPECIALS)),
    st.integers(0, 2**31),
)
def test_compiled_and_reference_give_the_same_bits(numel, block, levels, gain, num_specials, seed):
    source, first = numbers(numel, seed, SPECIALS[:num_specials]), numbers(numel, seed + 1)
    quanta, told = quanta_of(numel, block, levels, seed), []
    for each in both():
        residual, codes = first.clone(), torch.full((numel,), 99, dtype=torch.int8)
        each.encode(source, residual, quanta, codes, block=block, levels=levels, gain=gain)
        out = torch.full((numel,), 7.0)
        told.append((residual, codes, out, each.decode(codes, quanta, out, block=block)))
    (residual, codes, out, most), (residual_reference, codes_reference, out_reference, most_reference) = told
    assert same(residual, residual_reference)
    assert same(out, out_reference)
    assert same(most, most_reference)
    assert torch.equal(codes, codes_reference)
    assert not numel or int(codes.abs().max()) <= levels


@pytest.mark.parametrize("which", [0, 1])
def test_nothing_is_lost_between_codes_and_residual(which):
    each, numel, gain = both()[which], 3001, 4.0
    source, residual = numbers(numel, 1), numbers(numel, 2)
    before, quanta = residual.clone(), quanta_of(numel, 256, 31, 3)
    codes, out = torch.zeros(numel, dtype=torch.int8), torch.zeros(numel)
    each.encode(source, residual, quanta, codes, block=256, levels=31, gain=gain)
    most = each.decode(codes, quanta, out, block=256)
    wanted = source.double() + gain * before.double()
    torch.testing.assert_close(out.double() + gain * residual.double(), wanted, rtol=0, atol=1e-5)
    assert most.tolist() == [float(part.abs().max()) for part in out.split(256)]


@pytest.mark.parametrize("which", [0, 1])
def test_halves_go_to_the_even_code_and_what_is_too_large_to_the_largest(which):
    source = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 900.0, -900.0, math.inf])
    codes = torch.zeros(8, dtype=torch.int8)
    both()[which].encode(source, torch.zeros(8), torch.ones(1), codes, block=8, levels=31)
    assert codes.tolist() == [0, 2, 2, 0, -2, 31, -31, 31]


@pytest.mark.parametrize("which", [0, 1])
def test_a_block_with_a_nan_says_so(which):
    quanta = torch.tensor([1.0, math.inf, 1.0])
    most = both()[which].decode(torch.zeros(20, dtype=torch.int8), quanta, torch.zeros(20), block=8)
    assert most.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("which", [0, 1])
def test_what_does_not_fit_is_an_error(which):
    each = both()[which]
    numbers, short, codes = torch.zeros(20), torch.zeros(19), torch.zeros(20, dtype=torch.int8)
    for source, residual, quanta, coded in (
        (short, numbers, torch.ones(3), codes),
        (numbers, short, torch.ones(3), codes),
        (numbers, numbers, torch.ones(2), codes),
        (numbers, numbers, torch.ones(4), codes),
        (numbers, numbers, torch.ones(3), codes[1:]),
    ):
        with pytest.raises(IndexError, match="blocks of 8"):
            each.encode(source, residual, quanta, coded, block=8, levels=31)
    for coded, quanta, out in ((codes, torch.ones(2), numbers), (codes, torch.ones(3), short)):
        with pytest.raises(IndexError, match="blocks of 8"):
            each.decode(coded, quanta, out, block=8)


def test_a_wrong_type_is_an_error():
    with pytest.raises(TypeError, match="int8"):
        both()[0].decode(torch.zeros(8, dtype=torch.uint8), torch.ones(1), torch.zeros(8), block=8)


def test_a_cpu_gets_the_compiled_one_unless_torch_operations_are_wanted(monkeypatch):
    both()
    assert isinstance(ring_for("cpu"), native_ring.NativeRing)
    assert isinstance(ring_for("meta"), ring.EagerRing)
    monkeypatch.setenv("EAGLERAY_KERNELS", "eager")
    assert isinstance(ring_for("cpu"), ring.EagerRing)
