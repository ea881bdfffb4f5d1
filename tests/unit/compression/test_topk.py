import math
from itertools import pairwise

import pytest
import torch

from eagleray.compression.kernels import sparse
from eagleray.compression.layout import Layout
from eagleray.compression.memory import Memory
from eagleray.compression.topk import TopK, count
from eagleray.compression.wire import Step
from support.ranks import World, wires

SHAPES = {"a": (90, 100), "bias": (100,), "b": (70, 130), "wide": (3, 7_000), "c": (40, 40)}
GATHER, SPLIT = 0.03, 0.2
"""Ratios at which four ranks exchange in the one way and in the other."""


def made(seed, rank, numel):
    return torch.randn(numel, generator=torch.Generator().manual_seed(1000 * seed + rank))


def run(world, steps, scale=1.0, change=lambda step, rank, gradients: None):
    """The sums of the decoded means, and of the true ones, by name; the replicas must agree at every step."""
    decoded, true = ({name: torch.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    for step in range(1, steps + 1):
        given = []
        for rank in range(world.size):
            gradients = {
                name: made(step * 7 + i, rank, math.prod(SHAPES[name])) for i, name in enumerate(SHAPES)
            }
            change(step, rank, gradients)
            given.append(gradients)
        means = world.exchange(given, step, scale)
        for name, shape in SHAPES.items():
            decoded[name] += means[name].view(shape)
            true[name] += torch.stack([g[name].double() for g in given]).mean(0).float().view(shape)
    return decoded, true


def bits(tensors):
    return [tensor.numpy().tobytes() for tensor in tensors.values()]


def mean_residual(world):
    flats = [memory.flat("residual", "mean") for memory in world.memories]
    return world.layout.flat_views(torch.stack(flats).mean(0))


@pytest.mark.parametrize(
    ("size", "ratio"), [(1, GATHER), (2, SPLIT), (3, GATHER), (4, GATHER), (3, SPLIT), (4, SPLIT)]
)
def test_nothing_is_lost(size, ratio):
    world = World(size, SHAPES, lambda: TopK(ratio, warmup_steps=0))
    decoded, true = run(world, 8)
    left = mean_residual(world)
    for name in SHAPES:
        torch.testing.assert_close(decoded[name] + left[name], true[name], rtol=0, atol=2e-5)
    assert left["bias"].eq(0).all(), "dense parameters lose nothing"


@pytest.mark.parametrize(("size", "ratio"), [(2, GATHER), (4, SPLIT)])
def test_a_loss_scale_changes_nothing_else(size, ratio):
    plain, scaled = (World(size, SHAPES, lambda: TopK(ratio, warmup_steps=0, momentum=0.9)) for _ in range(2))
    decoded, _ = run(plain, 4)

    def times(step, rank, gradients):
        for gradient in gradients.values():
            gradient.mul_(1024)

    larger, _ = run(scaled, 4, 1024.0, times)
    for name in SHAPES:
        assert torch.equal(larger[name], decoded[name] * 1024)
    assert plain.state_bits() == scaled.state_bits()


@pytest.mark.parametrize(("size", "ratio"), [(2, GATHER), (4, GATHER), (4, SPLIT)])
def test_with_a_momentum_what_is_sent_and_kept_is_what_all_gradients_amount_to(size, ratio):
    """What is sent and kept is the sum of all momenta, which begin again where something was sent."""
    m, steps = 0.7, 6
    world = World(size, SHAPES, lambda: TopK(ratio, warmup_steps=0, momentum=m))
    reference = [
        {name: [torch.zeros(math.prod(s)).double() for _ in range(2)] for name, s in SHAPES.items()}
        for _ in range(size)
    ]
    decoded = {name: torch.zeros(math.prod(shape)).double() for name, shape in SHAPES.items()}
    for step in range(1, steps + 1):
        given = [
            {n: made(step * 7 + i, rank, math.prod(s)) for i, (n, s) in enumerate(SHAPES.items())}
            for rank in range(size)
        ]
        means = world.exchange(given, step, 1.0)
        for name in SHAPES:
            decoded[name] += means[name].double()
            place = world.layout.places[name]
            for rank, memory in enumerate(world.memories):
                u, total = reference[rank][name]
                gradient = (
                    given[rank][name].double()
                    if not place.is_dense
                    else sum(g[name].double() for g in given) / size
                )
                u *= m
                u += gradient
                total += u
                kept = memory.flat("momentum", "mean")[place.start : place.start + place.numel]
                if not place.is_dense:
                    was_sent = kept == 0
                    assert int(was_sent.sum()) >= count(place.numel, ratio)
                    u[was_sent] = 0
                torch.testing.assert_close(kept.double(), u, rtol=0, atol=2e-5)
    left = mean_residual(world)
    for name in SHAPES:
        wanted = sum(by_name[name][1] for by_name in reference) / size
        torch.testing.assert_close(
            decoded[name] + left[name].flatten(), wanted, rtol=0, atol=5e-5, check_dtype=False
        )


@pytest.mark.parametrize(("size", "ratio"), [(2, GATHER), (4, GATHER), (4, SPLIT)])
def test_buckets_change_no_bit(size, ratio):
    found = []
    for buckets in ([list(SHAPES)], [["c"], ["wide", "b"], ["bias", "a"]], [[name] for name in SHAPES]):
        world = World(size, SHAPES, lambda: TopK(ratio, warmup_steps=3, momentum=0.9), buckets)
        decoded, _ = run(world, 4)
        found.append((bits(decoded), world.state_bits()))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(("size", "ratio"), [(1, GATHER), (2, GATHER), (4, SPLIT)])
def test_the_reference_gives_the_same_bits(size, ratio, monkeypatch):
    found = []
    for kernels in ("", "eager"):
        monkeypatch.setenv("EAGLERAY_KERNELS", kernels)
        world = World(size, SHAPES, lambda: TopK(ratio, warmup_steps=2, momentum=0.5))
        decoded, _ = run(world, 3)
        found.append((bits(decoded), world.state_bits()))
    assert found[0] == found[1]


@pytest.mark.parametrize(("size", "ratio"), [(2, GATHER), (4, GATHER), (4, SPLIT)])
def test_a_rank_without_a_gradient_keeps_its_residual(size, ratio):
    world = World(size, SHAPES, lambda: TopK(ratio, warmup_steps=0, momentum=0.9))
    run(world, 3)
    place = world.layout.places["b"]
    kept = [
        memory.flat(slot, "mean")[place.start : place.start + place.numel]
        for memory in world.memories
        for slot in ("residual", "momentum")
    ]
    before = [one.clone() for one in kept]

    def nowhere(step, rank, gradients):
        gradients["b"].zero_()
        gradients["bias"].zero_()

    decoded, _ = run(world, 2, change=nowhere)
    assert decoded["b"].eq(0).all()
    assert decoded["bias"].eq(0).all()
    assert all(torch.equal(one, other) for one, other in zip(kept, before, strict=True))


@pytest.mark.parametrize(
    ("size", "ratio", "value"),
    [
        (1, GATHER, -1e30),
        (2, GATHER, math.inf),
        (4, GATHER, math.nan),
        (4, SPLIT, math.nan),
        (3, SPLIT, -1e30),
    ],
)
def test_what_is_not_finite_is_seen_by_all_and_kept_by_none(size, ratio, value):
    world = World(size, SHAPES, lambda: TopK(ratio, warmup_steps=0, momentum=0.9))

    def spoil(step, rank, gradients):
        if step == 3 and rank == size - 1:
            gradients["wide"][12_345] = value
        if step == 4 and rank == 0:
            gradients["bias"][3] = math.nan

    decoded, _ = run(world, 2)
    assert world.bad == [None, None]
    decoded, _ = run(world, 5, change=spoil)
    assert world.bad[2:] == [None, None, "wide", "bias", None]
    assert decoded["wide"].isnan().all()
    assert decoded["bias"].isnan().any()
    assert decoded["a"].isfinite().all()
    for memory in world.memories:
        assert memory.flat("residual", "mean").isfinite().all()
        assert memory.flat("momentum", "mean").isfinite().all()


def test_all_is_sent_with_a_ratio_of_1():
    for size in (2, 4):
        world = World(size, SHAPES, lambda: TopK(1.0))
        decoded, true = run(world, 1)
        for name in SHAPES:
            torch.testing.assert_close(decoded[name], true[name], rtol=0, atol=3 * 2**-10)


def test_how_many_are_sent():
    assert count(1, 0.01) == count(100, 0.01) == 1
    assert count(101, 0.01) == 2
    assert count(700, 0.07) == 49, "not 50: 0.07 * 700 is a little more than 49"
    assert count(5, 1.0) == 5
    world = World(2, {"a": (1, 1), "b": (2, 3)}, lambda: TopK(0.01, warmup_steps=0), dense_below=0)
    means = world.exchange([{"a": torch.ones(1), "b": torch.arange(6.0)}] * 2, 1, 1.0)
    assert means["a"].tolist() == [1]
    assert means["b"].tolist() == [0, 0, 0, 0, 0, 5]


def test_the_warm_up_falls_in_few_stages_and_goes_on_after_a_resume():
    layout = Layout([("a", (100, 100))], world_size=1)
    memory, wire = Memory(layout, torch.device("cpu")), wires(1)[0]
    seen = []
    for _ in range(2):
        topk = TopK(0.01, warmup_steps=60)
        topk.bind(layout, wire, memory)
        for number in range(1, 41):
            ratios = {topk.ratio_at(Step(number, bucket)) for bucket in range(3)}
            assert len(ratios) == 1
            seen.append(ratios.pop())
    assert seen == [0.25] * 20 + [0.0855] * 20 + [0.0292] * 20 + [0.01] * 20


def test_bytes_of_the_benchmark_s_model():
    widths = (784, 2048, 2048, 2048, 100)
    shapes = {}
    for i, (a, b) in enumerate(pairwise(widths)):
        shapes |= {f"{i}.weight": (b, a), f"{i}.bias": (b,)}
    world = World(4, shapes, lambda: TopK(0.01, warmup_steps=0))
    gradients = {name: torch.ones(math.prod(shape)) for name, shape in shapes.items()}
    world.exchange([gradients] * 4, 1, 1.0)
    k = sum(count(math.prod(s), 0.01) for s in shapes.values() if len(s) == 2)
    sent = world.wires[0].sent_bytes
    assert sent < 1.15e6
    assert sent < 3 * (3.4 * k + 4 * (3 * 2048 + 100) + 2000)


def test_split_messages_do_not_grow_with_the_world():
    sent = {}
    for size in (4, 8):
        world = World(size, {"a": (1000, 1000)}, lambda: TopK(SPLIT, warmup_steps=0))
        world.exchange([{"a": made(0, rank, 1_000_000)} for rank in range(size)], 1, 1.0)
        sent[size] = world.wires[0].sent_bytes
    per_number = sparse.payload_bytes(100_000, 20_000) / 20_000
    assert sent[4] < 1.02 * 2 * 3 / 4 * 200_000 * per_number
    assert sent[8] < 1.02 * 2 * 7 / 8 * 200_000 * per_number
