import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eagleray.compression.codec import pack
from eagleray.compression.kernels import BLOCKS, CODECS, codec, eager, native
from eagleray.compression.layout import NUMEL, PARAMETER, PAYLOAD, Bucket, Layout, cut
from support.examples import examples

SPECIALS = [0.0, -0.0, 1e-45, -1e-45, 1e-39, 2.0**-126, 65504.0, 65520.0, 1e-7, 2.0**126, -1.7e38]
WILD = [math.nan, math.inf, -math.inf, 2.0**127, -3.4e38]
NUM_RANKS = 3
OUTSIDE = r"leaves|reaches"


class Case:
    """A bucket with its tables and numbers, made from a seed."""

    def __init__(self, shapes, seed, *, owner=None, wild=False, exponent=0, shift=0):
        self.made = torch.Generator().manual_seed(seed)
        layout = Layout(((f"p{i}", shape) for i, shape in enumerate(shapes)), world_size=NUM_RANKS)
        places = tuple(layout.places.values())[::-1]  # DDP's order
        starts, end = [], shift
        for place in places:
            starts.append(end)
            end += place.numel
        self.tiles = cut(Bucket(places, tuple(starts)), layout, owner=owner)
        self.numel, self.flat_numel, self.wild, self.exponent = end, layout.numel, wild, exponent
        self.used = (torch.rand(len(places), generator=self.made) < 0.8).to(torch.uint8)

    def numbers(self, numel, *, specials=True):
        """float32 [numel], of very different sizes, with special ones here and there."""
        x = torch.randn(numel, generator=self.made) * torch.randn(numel, generator=self.made).exp()
        x = x * 2.0**self.exponent
        for value in (SPECIALS + (WILD if self.wild else [])) * specials:
            x[torch.rand(numel, generator=self.made) < 0.02 / (1 + 4 * (value in WILD))] = value
        if specials and numel > 600:
            x[300:600] = 0.0
        return x


cases = st.builds(
    Case,
    st.lists(
        st.one_of(
            st.tuples(st.integers(1, 700)),
            st.tuples(st.integers(1, 9), st.integers(1, 1500)),
            st.just((2, 4096)),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 2**31),
    owner=st.sampled_from([None, 0, 1, 2]),
    wild=st.booleans(),
    exponent=st.sampled_from([0, 0, -20, -130, 100]),
    shift=st.integers(0, 3),
)
codecs = st.sampled_from(CODECS).flatmap(
    lambda name: st.tuples(st.just(name), st.sampled_from([8, 16, 64, 128, 256, 1024, 4096]))
)


def pair(name, block, dtype=torch.float32):
    """The compiled codec and the reference."""
    compiled = codec(name, block if name in BLOCKS else None)
    assert isinstance(compiled, native.NativeCodec), "these tests need a C++ compiler (apt install g++)"
    return compiled, eager.make(name, block if name in BLOCKS else 1, dtype)


def same(a, b):
    """Bit for bit, but any NaN is like another."""
    if a.dtype == torch.float32:
        equal = (a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())
        return bool(equal.all())
    return torch.equal(a, b)


def same_payload(name, a, b):
    return same(a.view(torch.float32), b.view(torch.float32)) if name == "raw" else same(a, b)


@examples(60)
@given(
    cases, codecs, st.booleans(), st.sampled_from([(1.0, 0.0, 1.0), (1024.0, 0.0, 2.0**-10), (0.0, 1.0, 3.7)])
)
def test_encode_and_decode_give_the_reference_s_bits(case, kind, with_residual, gains):
    compiled, reference = pair(*kind)
    gain_in, keep, gain_out = gains
    end = pack(case.tiles, reference)
    source = case.numbers(case.numel)
    first = case.numbers(case.flat_numel, specials=False) * 0.01 if with_residual else None
    told = []
    for each in (compiled, reference):
        payload = torch.full((end,), 0xA5, dtype=torch.uint8)
        residual = None if first is None else first.clone()
        bad = each.encode(
            source,
            case.tiles,
            payload,
            residual,
            gain_in=gain_in,
            keep=keep,
            gain_out=gain_out,
            used=case.used,
        )
        told.append((bad, payload, residual))
    (bad, payload, residual), (bad_reference, payload_reference, residual_reference) = told
    assert bad == bad_reference
    assert same_payload(kind[0], payload, payload_reference)
    if with_residual:
        assert same(residual, residual_reference)
        assert case.wild or gain_out > 1 or bool(residual.isfinite().all())
    for accumulate in (False, True):
        for factor in (1.0, 0.3):
            outs = [torch.full((case.numel,), 0.7) for _ in range(2)]
            compiled.decode(payload, case.tiles, outs[0], accumulate=accumulate, factor=factor)
            reference.decode(payload, case.tiles, outs[1], accumulate=accumulate, factor=factor)
            assert same(*outs)


@examples(40)
@given(cases, codecs, st.booleans(), st.integers(1, 4), st.booleans())
def test_reduce_gives_the_reference_s_bits(case, kind, with_residual, num_ranks, in_place):
    compiled, reference = pair(*kind)
    end = pack(case.tiles, reference)
    payloads = [torch.zeros(end, dtype=torch.uint8) for _ in range(num_ranks)]
    for payload in payloads:
        compiled.encode(case.numbers(case.numel), case.tiles, payload)
    first = case.numbers(case.flat_numel, specials=False) if with_residual else None
    told = []
    for each in (compiled, reference):
        residual = None if first is None else first.clone()
        inputs = [payload.clone() for payload in payloads]
        payload = inputs[-1] if in_place else torch.full((end,), 0xA5, dtype=torch.uint8)
        told.append((each.reduce(inputs, case.tiles, payload, residual, gain_out=1.7), payload, residual))
    assert told[0][0] == told[1][0]
    assert same_payload(kind[0], told[0][1], told[1][1])
    assert first is None or same(told[0][2], told[1][2])


@examples(30)
@given(cases, codecs)
def test_nothing_is_lost_between_payload_and_residual(case, kind):
    """Telescoping: decoded + residual' == source + residual, to the rounding of float32."""
    case.wild, case.exponent = False, 0
    each, _ = pair(*kind)
    payload = torch.zeros(pack(case.tiles, each), dtype=torch.uint8)
    source = case.numbers(case.numel, specials=False)
    residual = case.numbers(case.flat_numel, specials=False) * 0.01
    before, out = residual.clone(), torch.zeros(case.numel)
    assert each.encode(source, case.tiles, payload, residual) == -1
    each.decode(payload, case.tiles, out)
    for gradient, flat, numel, *_ in case.tiles.tolist():
        there = slice(gradient, gradient + numel), slice(flat, flat + numel)
        wanted = source[there[0]].double() + before[there[1]].double()
        got = out[there[0]].double() + residual[there[1]].double()
        assert float((wanted - got).abs().max()) <= 4e-7 * float(wanted.abs().max())


@pytest.mark.parametrize("make", ["native", "eager"])
@pytest.mark.parametrize("name", CODECS)
class TestBoth:
    def codec(self, name, make):
        return pair(name, BLOCKS.get(name, 1))[make == "eager"]

    def test_error_is_within_half_a_level(self, name, make):
        each, case = self.codec(name, make), Case([(3, 3000)], 1)
        payload = torch.zeros(pack(case.tiles, each), dtype=torch.uint8)
        source, out = torch.rand(case.numel, generator=case.made) - 0.5, torch.zeros(case.numel)
        each.encode(source, case.tiles, payload)
        each.decode(payload, case.tiles, out)
        bound = {
            "raw": 0.0,
            "fp16": 2**-12,
            "bf16": 2**-9,
            "int8": 0.51 / 254,
            "int4": 0.51 / 14,
            "sign": 0.5,
        }
        assert float((source - out).abs().max()) <= bound[name] * 1.0001

    def test_a_bad_block_is_named_and_leaves_its_residual_alone(self, name, make):
        each, case = self.codec(name, make), Case([(2, 4096), (2, 3000), (2, 2000)], 1)
        payload = torch.zeros(pack(case.tiles, each), dtype=torch.uint8)
        source, residual = torch.randn(case.numel), torch.randn(case.flat_numel)
        source[4100], source[-1] = math.inf, math.nan  # the second and the third parameter, one block each
        before, out = residual.clone(), torch.zeros(case.numel)
        assert each.encode(source, case.tiles, payload, residual) == 1
        assert bool(residual.isfinite().all())
        each.decode(payload, case.tiles, out)
        is_bad = ~out.isfinite()
        assert 2 <= int(is_bad.sum()) <= 2 * each.block
        for gradient, flat, numel, *_ in case.tiles.tolist():
            there = is_bad[gradient : gradient + numel]
            was, is_now = (r[flat : flat + numel][there] for r in (before, residual))
            assert torch.equal(was, is_now)

    def test_an_unused_parameter_sends_zeros_and_keeps_its_residual(self, name, make):
        each, case = self.codec(name, make), Case([(2, 3000), (2, 2000)], 1)
        payload = torch.full((pack(case.tiles, each),), 7, dtype=torch.uint8)
        residual = torch.randn(case.flat_numel)
        before, out = residual.clone(), torch.ones(case.numel)
        used = torch.tensor([0, 1], dtype=torch.uint8)
        source = torch.randn(case.numel)
        source[:4000] = 0
        each.encode(source, case.tiles, payload, residual, used=used)
        each.decode(payload, case.tiles, out)
        for gradient, flat, numel, at, parameter in case.tiles.tolist():
            if parameter == 0:
                assert not out[gradient : gradient + numel].any()
                assert not payload[at : at + each.payload_bytes(numel)].any()
                assert torch.equal(residual[flat : flat + numel], before[flat : flat + numel])
        assert bool(out[4000:].any())

    def test_a_table_that_leaves_a_tensor_is_an_error(self, name, make):
        each, case = self.codec(name, make), Case([(2, 3000)], 1)
        end = pack(case.tiles, each)
        payload, source = torch.zeros(end, dtype=torch.uint8), torch.ones(case.numel)
        flat = torch.zeros(case.flat_numel)
        with pytest.raises(IndexError, match=OUTSIDE):
            each.encode(source[:-1], case.tiles, payload)
        with pytest.raises(IndexError, match=OUTSIDE):
            each.encode(source, case.tiles, payload[:-8])
        with pytest.raises(IndexError, match=OUTSIDE):
            each.encode(source, case.tiles, payload, flat[: case.numel - 1])
        with pytest.raises(IndexError, match=OUTSIDE):
            each.reduce([payload, payload[:-8]], case.tiles, payload)
        case.tiles[0, PAYLOAD] = 4
        with pytest.raises(IndexError):
            each.decode(payload, case.tiles, source)
        case.tiles[0, PAYLOAD], case.tiles[0, PARAMETER] = 0, 3
        with pytest.raises(IndexError, match=OUTSIDE):
            each.encode(source, case.tiles, payload, used=torch.ones(3, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_raw_keeps_any_float_type(dtype):
    each, case = codec("raw", dtype=dtype), Case([(5, 1111), (7,)], 3)
    payloads = [torch.zeros(pack(case.tiles, each), dtype=torch.uint8) for _ in range(2)]
    sources = [torch.randn(case.numel).to(dtype) for _ in payloads]
    for source, payload in zip(sources, payloads, strict=True):
        assert each.encode(source, case.tiles, payload) == -1
    out = torch.zeros(case.numel, dtype=dtype)
    each.decode(payloads[0], case.tiles, out)
    assert torch.equal(out, sources[0])
    assert each.reduce(payloads, case.tiles, payloads[0]) == -1
    each.decode(payloads[0], case.tiles, out)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert torch.equal(out, ((sources[0].to(wide) + sources[1].to(wide)) * 0.5).to(dtype))


def test_sizes_on_the_wire():
    sizes = {name: codec(name).payload_bytes(4096) for name in CODECS}
    assert sizes == {
        "raw": 16384,
        "fp16": 8192,
        "bf16": 8192,
        "int8": 4096 + 32,
        "int4": 2048 + 64,
        "sign": 512 + 32,
    }
    assert codec("sign").payload_bytes(1) == 8
    assert int(Case([(1,)], 0).tiles[0, NUMEL]) == 1


def test_what_cannot_be_a_codec_is_refused():
    with pytest.raises(ValueError, match="raw, fp16, bf16, int8, int4, sign"):
        codec("int5")
    with pytest.raises(ValueError, match="power of two"):
        codec("int8", 100)
    with pytest.raises(TypeError, match="float64"):
        codec("int8").decode(
            torch.zeros(16, dtype=torch.uint8), torch.zeros(0, 5, dtype=torch.int64), torch.ones(3).double()
        )
