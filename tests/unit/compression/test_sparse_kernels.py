import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eagleray.compression.kernels import native, native_sparse, sparse
from eagleray.compression.layout import TILE
from support.examples import examples

NAN = float("nan")


def both():
    functions = native.load()
    assert functions is not None, "these tests need a C++ compiler (apt install g++)"
    return native_sparse.NativeSparse(functions), sparse.EagerSparse()


def table(numel, owners, ratio):
    """A parameter at 5 in the gradient and 16 in the flat space, a unit for each owner; and its bytes."""
    rows, at, num_tiles = [], 0, -(-numel // TILE)
    for first in range(min(owners, num_tiles)):
        tiles = range(first, num_tiles, owners)
        size = sum(min(TILE, numel - t * TILE) for t in tiles)
        k = min(max(int(ratio * size), 1), size)
        rows.append([5 + first * TILE, 16 + first * TILE, size, at, 0, k, owners])
        at += sparse.payload_bytes(size, k)
    return torch.tensor(rows), at


def gradients(numel, kind, made):
    x = torch.randn(numel + 9, generator=made)
    if kind == "ties":
        x = x.round()
    elif kind == "mostly zero":
        x *= torch.rand(numel + 9, generator=made) < 0.001
    elif kind == "wide":
        x *= 2.0 ** torch.randint(-140, 90, (numel + 9,), generator=made).float()
    return x


def bits(*tensors):
    return [t.view(torch.uint8 if t.dtype == torch.uint8 else torch.int32).clone() for t in tensors]


@examples(40)
@given(
    st.one_of(st.integers(1, 300), st.integers(1, 20_000)),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([0.001, 0.01, 0.1, 0.6, 1.0]),
    st.sampled_from(["plain", "ties", "mostly zero", "wide"]),
    st.sampled_from([0.0, 0.9]),
    st.integers(0, 2**31),
)
def test_compiled_and_reference_give_the_same_bits(numel, owners, ratio, kind, beta, seed):
    units, num_bytes = table(numel, owners, ratio)
    told = []
    for codec in both():
        made = torch.Generator().manual_seed(seed)
        residual, momentum = torch.zeros(numel + 20), torch.zeros(numel + 20) if beta else None
        thresholds, used = (
            torch.full((len(units),), torch.inf),
            torch.tensor([sparse.USED], dtype=torch.uint8),
        )
        seen = []
        for scale in (1.0, 100.0, 0.01):
            payloads = [torch.full((num_bytes,), 7, dtype=torch.uint8) for _ in range(3)]
            for payload in payloads:
                gradient = gradients(numel, kind, made) * scale
                codec.encode(
                    gradient,
                    units,
                    payload,
                    residual,
                    used,
                    thresholds=thresholds,
                    momentum=momentum,
                    gain=0.3,
                    beta=beta,
                )
            out, summed = torch.full((numel + 9,), 3.0), torch.zeros(num_bytes, dtype=torch.uint8)
            codec.decode(payloads, units, out, factor=1 / 3)
            codec.reduce(payloads, units, summed, residual)
            seen += bits(*payloads, residual, out, summed, *([] if momentum is None else [momentum]))
        told.append(seen)
        around = torch.cat((residual[:16], residual[16 + numel :], out[:5] - 3, out[5 + numel :] - 3))
        assert around.eq(0).all(), "what is beside the parameter stays"
    assert all(torch.equal(one, other) for one, other in zip(*told, strict=True))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("numel", "ratio"), [(1, 1.0), (100, 0.01), (9000, 0.001), (70_000, 0.01), (9000, 1.0)]
)
def test_the_k_largest_are_sent_and_the_rest_is_kept(which, numel, ratio):
    codec, (units, num_bytes) = both()[which], table(numel, 1, ratio)
    k = int(units[0, sparse.COUNT])
    gradient = torch.randn(numel + 9, generator=torch.Generator().manual_seed(0))
    residual, payload, out = (
        torch.zeros(numel + 16),
        torch.zeros(num_bytes, dtype=torch.uint8),
        torch.zeros(numel + 9),
    )
    used = torch.tensor([sparse.USED], dtype=torch.uint8)
    codec.encode(gradient, units, payload, residual, used, thresholds=torch.tensor([torch.inf]))
    codec.decode([payload], units, out)
    v, sent = gradient[5 : 5 + numel], out[5 : 5 + numel]
    assert int(sent.count_nonzero()) == k
    assert set(sent.nonzero().flatten().tolist()) == set(v.abs().topk(k).indices.tolist())
    torch.testing.assert_close(sent[sent != 0], v[sent != 0], rtol=2**-11, atol=0)
    assert torch.equal(residual[16:] + sent, v), "rounding loses nothing"
    assert num_bytes <= 8 + 4 * k + numel // 65535 * 2 + 8


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_unused_or_not_finite_leaves_the_state_alone(which):
    codec, (units, num_bytes) = both()[which], table(9000, 2, 0.01)
    residual, momentum = torch.ones(9016), torch.ones(9016)
    payload, good, out = (torch.zeros(num_bytes, dtype=torch.uint8) for _ in range(3))
    out = torch.zeros(9009)
    for state in (sparse.UNUSED, sparse.BAD):
        flags, thresholds = torch.tensor([state], dtype=torch.uint8), torch.full((2,), torch.inf)
        codec.encode(
            torch.full((9009,), NAN),
            units,
            payload,
            residual,
            flags,
            thresholds=thresholds,
            momentum=momentum,
        )
        assert torch.cat((residual, momentum)).eq(1).all()
        codec.encode(
            torch.ones(9009), units, good, torch.zeros(9016), torch.ones_like(flags), thresholds=thresholds
        )
        codec.decode([payload, good, payload], units, out)
        wanted = NAN if state == sparse.BAD else float(int(units[:, sparse.COUNT].sum()))
        torch.testing.assert_close(out[5:9005].sum(), torch.tensor(wanted), equal_nan=True)
        assert state == sparse.UNUSED or out[5:9005].isnan().all()
        codec.reduce([good, payload], units, payload, residual)
        codec.decode([payload], units, out)
        assert state == sparse.UNUSED or (out[5:9005].isnan().all() and residual.eq(1).all())


def test_a_spoilt_residual_spoils_what_is_sent_and_no_other_memory():
    codec = both()[0]
    for numel, ratio in ((9000, 0.9), (3, 1.0)):
        units, num_bytes = table(numel, 1, ratio)
        residual, around = torch.full((20_000,), NAN), torch.full((20_000,), 5.0)
        residual[:16] = residual[16 + numel :] = 5.0
        payload, out = torch.zeros(num_bytes, dtype=torch.uint8), torch.zeros(numel + 9)
        codec.encode(
            torch.ones(numel + 9),
            units,
            payload,
            residual,
            torch.tensor([sparse.USED], dtype=torch.uint8),
            thresholds=torch.zeros(1),
        )
        codec.decode([payload], units, out)
        assert out.isnan().any()
        assert torch.equal(residual[:16], around[:16])
        assert torch.equal(residual[16 + numel :], around[16 + numel :])


@pytest.mark.parametrize("which", [0, 1])
def test_what_does_not_fit_is_an_error(which):
    codec, (units, num_bytes) = both()[which], table(9000, 1, 0.01)
    payload, flags = torch.zeros(num_bytes, dtype=torch.uint8), torch.ones(1, dtype=torch.uint8)
    for column, value in ((0, 10), (1, 20), (3, 8), (3, -8), (4, 1), (5, 9001), (5, 0)):
        wrong = units.clone()
        wrong[0, column] = value
        with pytest.raises(IndexError, match="units"):
            codec.encode(torch.ones(9005), wrong, payload, torch.zeros(9016), flags, thresholds=torch.ones(1))
    codec.encode(torch.ones(9005), units, payload, torch.zeros(9016), flags, thresholds=torch.ones(1))
    for byte in (0, 200):  # more numbers than are sent; a gap beyond the end
        garbled = payload.clone()
        garbled[-60:] = byte
        with pytest.raises(IndexError, match="payload"):
            codec.decode([payload, garbled], units, torch.zeros(9005))
        with pytest.raises(IndexError, match="payload"):
            codec.reduce([payload, garbled], units, payload.clone(), torch.zeros(9016))
