import copy
import math

import pytest
import torch
from torch import Tensor

from eagleray.compression.kernels.lowrank import EagerLowRank, NativeLowRank, low_rank_for
from eagleray.compression.layout import Bucket, Layout
from eagleray.compression.memory import Memory
from eagleray.compression.powersgd import FACTORS, PowerSGD, matrix_shape
from eagleray.compression.wire import Step
from support.ranks import in_lockstep, same_bits, wires

SHAPES = {"first": (40, 30), "norm": (40,), "conv": (24, 5, 3, 3), "second": (17, 64), "narrow": (300, 4)}
CPU = torch.device("cpu")


class World:
    """Ranks of one process with one model, whose buckets may be cut in any way."""

    def __init__(self, world_size, shapes=SHAPES, *, rank=4, cuts=None, warmup_steps=None):
        self.world_size, self.shapes = world_size, shapes
        self.layout = Layout(shapes.items(), world_size=world_size, dense_below=0)
        self.wires = wires(world_size)
        self.memories = [Memory(self.layout, CPU) for _ in range(world_size)]
        self.compressors = [PowerSGD(rank, warmup_steps) for _ in range(world_size)]
        self.number = 0
        self.cut(cuts or [list(shapes)])

    def cut(self, cuts):
        """Other buckets: lists of names."""
        self.buckets = []
        for names in cuts:
            places = tuple(self.layout.places[name] for name in names)
            ends = torch.tensor([0, *(place.numel for place in places)]).cumsum(0).tolist()
            self.buckets.append(Bucket(places, tuple(ends[:-1])))
        for compressor, wire, memory in zip(self.compressors, self.wires, self.memories, strict=True):
            compressor.bind(self.layout, wire, memory)
        self.plans = [[one.plan(bucket, CPU) for one in self.compressors] for bucket in self.buckets]

    def step(self, gradients: list[dict[str, Tensor]], *, loss_scale=1.0):
        """The mean that all ranks hold, by parameter, and the bad parameters' names."""
        self.number += 1
        means, bad = {}, []
        for ordinal, (bucket, plans) in enumerate(zip(self.buckets, self.plans, strict=True)):
            flats = [torch.cat([one[name].flatten() for name in bucket.key]) for one in gradients]
            step = Step(self.number, ordinal, loss_scale)
            found = in_lockstep([plan.run(flat, step) for plan, flat in zip(plans, flats, strict=True)])
            assert len(set(found)) == 1
            bad += [bucket.key[found[0]]] if found[0] >= 0 else []
            assert same_bits(flats)
            for place, start in zip(bucket.places, bucket.starts, strict=True):
                means[place.name] = flats[0][start : start + place.numel].view(place.shape).clone()
            for wire in self.wires:
                wire.settle(self.number + 1)
        return means, bad

    def residuals(self, name):
        return [self.layout.flat_views(memory.flat("residual", "mean"))[name] for memory in self.memories]


def gradients(world_size, seed, shapes=SHAPES):
    made = torch.Generator().manual_seed(seed)
    return [{n: torch.randn(s, generator=made) for n, s in shapes.items()} for _ in range(world_size)]


def mean_of(values):
    return {name: torch.stack([one[name] for one in values]).mean(0) for name in values[0]}


@pytest.fixture(params=["native", "eager"])
def kernels(request, monkeypatch):
    if request.param == "eager":
        monkeypatch.setenv("EAGLERAY_KERNELS", "eager")
    return request.param


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_matrices_of_the_rank_or_less_are_sent_whole_in_every_second_step(world_size, kernels):
    shapes = {"zero": (30, 50), "one": (30, 50), "three": (30, 50)}
    world = World(world_size, shapes)
    made = torch.Generator().manual_seed(0)
    given, got = [], []
    for _ in range(4):
        values = [{name: torch.zeros(30, 50) for name in shapes} for _ in range(world_size)]
        for name, rank in (("one", 1), ("three", 3)):  # the space is the same on all ranks
            made.manual_seed(rank)
            left, right = torch.randn(30, rank, generator=made), torch.randn(rank, 50, generator=made)
            for one in values:
                one[name] = left @ torch.randn(rank, rank, generator=made) @ right
        given.append(mean_of(values))
        got.append(world.step(values)[0])
    for name in shapes:
        sent, wanted = (torch.stack([m[name] for m in means]).sum(0) for means in (got, given))
        torch.testing.assert_close(sent, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("rank", [1, 4, 6])
def test_what_was_sent_and_what_is_kept_sum_up_to_the_gradients(world_size, rank, kernels):
    world = World(world_size, rank=rank)
    totals = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for seed in range(5):
        values = gradients(world_size, seed)
        scaled = [{n: g * 1024 for n, g in one.items()} for one in values]
        means, bad = world.step(scaled, loss_scale=1024)
        assert not bad
        for name, wanted in mean_of(values).items():
            totals[name] += wanted - means[name] / 1024
    for name, total in totals.items():
        kept = torch.stack(world.residuals(name)).mean(0)
        torch.testing.assert_close(kept, total, rtol=1e-4, atol=1e-4, msg=name)
        assert bool(kept.any()) == (matrix_shape(world.layout.places[name], rank) is not None)


def test_parameters_that_vectors_do_not_make_smaller_travel_as_they_are():
    world = World(2)
    shape_of = {name: matrix_shape(place, 4) for name, place in world.layout.places.items()}
    assert shape_of == {"first": (40, 30), "norm": None, "conv": (24, 45), "second": (17, 64), "narrow": None}
    values = gradients(2, 0)
    means, _ = world.step(values)
    for name in ("norm", "narrow"):
        torch.testing.assert_close(means[name], mean_of(values)[name])
    sent = world.wires[0].payload_bytes
    assert sent == 4 * (4 * (40 + 24 + 17) + 40 + 1200)
    world.step(values)
    assert world.wires[0].payload_bytes - sent == 4 * (4 * (30 + 45 + 64) + 40 + 1200)


@pytest.mark.parametrize("world_size", [2, 3])
def test_buckets_do_not_matter(world_size, kernels):
    one = World(world_size)
    others = World(world_size, cuts=[["second", "norm"], ["conv"], ["narrow", "first"]])
    for seed in range(5):
        values = gradients(world_size, seed)
        values[0]["conv"].zero_()  # unused on one rank
        if seed == 3:
            for each in values:
                each["first"].zero_()
            others.cut([["norm"], ["first", "second"], ["narrow", "conv"]])
        means, their = one.step(values)[0], others.step(values)[0]
        for name in SHAPES:
            assert same_bits([means[name], their[name]]), (seed, name)
            for mine, other in zip(one.residuals(name), others.residuals(name), strict=True):
                assert torch.equal(mine, other)


def test_the_vectors_turn_to_the_largest_singular_vectors():
    shapes = {"w": (60, 50)}
    world = World(2, shapes)
    made = torch.Generator().manual_seed(3)
    u, _ = torch.linalg.qr(torch.randn(60, 50, generator=made))
    v, _ = torch.linalg.qr(torch.randn(50, 50, generator=made))
    gradient = u @ torch.diag(2.0 ** -torch.arange(50.0)) @ v.T
    means = {}
    for _ in range(12):
        for memory in world.memories:
            memory.flat("residual", "mean").zero_()  # an error that comes back would bring up the others
        means, _ = world.step([{"w": gradient}] * 2)
    best = u[:, :4] @ torch.diag(2.0 ** -torch.arange(4.0)) @ v[:, :4].T
    torch.testing.assert_close(means["w"], best, rtol=0, atol=1e-4)
    (factor,) = world.memories[0].tensors[FACTORS][1].values()
    assert factor.shape == (4, 1, 50)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["first", "second", "norm"])
@pytest.mark.parametrize("steps_before", [0, 1])
def test_what_is_not_finite_is_seen_by_all_and_kept_by_none(value, name, steps_before, kernels):
    world = World(3)
    for seed in range(steps_before):
        world.step(gradients(3, seed))
    factors = {n: t.clone() for n, t in world.memories[0].tensors.get(FACTORS, ("same", {}))[1].items()}
    values = gradients(3, 7)
    values[1][name].view(-1)[5] = value
    means, bad = world.step(values)
    assert bad == [name]
    assert not means[name].isfinite().all()
    if name != "norm":
        assert means[name].isnan().all()
        if factors:
            assert torch.equal(world.memories[0].tensors[FACTORS][1][name], factors[name])
    for memory in world.memories:
        assert memory.flat("residual", "mean").isfinite().all()
    values = gradients(3, 8)
    means, bad = world.step(values)
    assert not bad
    assert all(mean.isfinite().all() for mean in means.values())


def test_a_parameter_without_a_gradient_keeps_what_it_has():
    world = World(2)
    world.step(gradients(2, 0))
    kept = [one.clone() for one in world.residuals("first")]
    values = gradients(2, 1)
    values[0]["first"].zero_()
    world.step(values)
    assert torch.equal(world.residuals("first")[0], kept[0])
    assert not torch.equal(world.residuals("first")[1], kept[1])
    kept = [one.clone() for one in world.residuals("first")]
    factor = world.memories[0].tensors[FACTORS][1]["first"].clone()
    values[1]["first"].zero_()
    means, _ = world.step(values)
    assert not means["first"].any()
    for before, after in zip(kept, world.residuals("first"), strict=True):
        assert torch.equal(before, after)
    assert torch.equal(world.memories[0].tensors[FACTORS][1]["first"], factor)


def test_tiny_and_huge_gradients():
    for exponent in (-140, -100, 60, 100):
        world = World(2)
        for seed in range(3):
            values = [{n: g * 2.0**exponent for n, g in one.items()} for one in gradients(2, seed)]
            means, bad = world.step(values)
            assert not bad
            assert all(mean.isfinite().all() for mean in means.values())


def test_warm_up_is_exact_and_counted_in_the_state(kernels):
    world = World(3, warmup_steps=2)
    for seed in range(3):
        values = gradients(3, seed)
        means, _ = world.step(values)
        wanted = mean_of(values)["first"]
        assert torch.allclose(means["first"], wanted, atol=1e-5) == (seed < 2)
    assert int(world.memories[0].tensors["steps"][1]["first"]) == 3


def test_a_memory_that_was_loaded_goes_on_to_the_last_bit():
    world, other = World(2), World(2)
    for seed in range(3):
        world.step(gradients(2, seed))
    for mine, its in zip(world.memories, other.memories, strict=True):
        its.flat("residual", "mean").copy_(mine.flat("residual", "mean"))
        its.tensors = copy.deepcopy(mine.tensors)
    for seed in range(3, 6):
        values = gradients(2, seed)
        means, theirs = world.step(values)[0], other.step(values)[0]
        assert all(torch.equal(means[name], theirs[name]) for name in SHAPES)


SIZES = [(3, 5, 2), (33, 50, 4), (64, 64, 1), (5, 1000, 3), (1000, 17, 4), (21, 4200, 9)]


@pytest.fixture(scope="module")
def native():
    made = low_rank_for("cpu")
    assert isinstance(made, NativeLowRank), "no compiler?"
    return made


@pytest.mark.parametrize(("a", "b", "r"), SIZES)
def test_compiled_and_eager_give_the_same_bits_where_ranks_must_agree(native, a, b, r):
    eager, made = EagerLowRank(), torch.Generator().manual_seed(a)
    for kind in ("plain", "dependent", "zero", "tiny"):
        for n in (a, b):
            x, start = torch.randn(r, n, generator=made), torch.randn(r, n, generator=made)
            if kind == "dependent":
                x[-1] = x[0] * -3
            elif kind == "zero":
                x[0] = 0
            elif kind == "tiny":
                x *= 1e-36
            mine, its = x.clone(), x.clone()
            native.orthogonalise([mine], [start])
            eager.orthogonalise([its], [start])
            assert same_bits([mine, its])
            if kind != "dependent" or r > 1:
                torch.testing.assert_close(mine @ mine.T, torch.eye(r), rtol=0, atol=1e-5)
    left, right = torch.randn(r, a, generator=made), torch.randn(r, b, generator=made)
    for shift in (0, 3):  # buckets start anywhere
        mine, its = torch.zeros(a * b + 16), torch.zeros(a * b + 16)
        native.expand(left, right, 0.3, mine[shift : shift + a * b].view(a, b))
        eager.expand(left, right, 0.3, its[shift : shift + a * b].view(a, b))
        assert same_bits([mine, its])


@pytest.mark.parametrize(("a", "b", "r"), SIZES)
@pytest.mark.parametrize("from_right", [True, False])
def test_products_and_what_they_leave(native, a, b, r, from_right):
    made = torch.Generator().manual_seed(b)
    x = torch.linalg.qr(torch.randn(b if from_right else a, r, generator=made))[0].T.contiguous()
    for bad in (None, math.nan, math.inf):
        found = []
        for kernels, shift in ((EagerLowRank(), 0), (native, 0), (native, 3)):
            g, e = torch.randn(a * b + 16, generator=made.manual_seed(1)), torch.randn(a, b, generator=made)
            gradient = torch.empty(a * b + 16)[shift : shift + a * b].copy_(g[: a * b]).view(a, b)
            if bad is not None:
                gradient[1, 2] = bad
            y = torch.empty(r, a if from_right else b)
            v = (gradient.double() * 0.5 + e).nan_to_num(7.0, 7.0)
            before = e.clone()
            kernels.project(gradient, e, 0.5, x, y, from_right=from_right)
            xd = x.double()
            wanted = xd @ v.T if from_right else xd @ v
            left = v - (wanted.T @ xd if from_right else xd.T @ wanted)
            at = (slice(None), 1) if from_right else (slice(None), 2)
            if bad is not None:
                assert not y[at].isfinite().any() or bad == math.inf
                assert not y[at].isfinite().all()
                lost = (1,) if from_right else (slice(None), 2)
                assert torch.equal(e[lost], before[lost])
                left[lost], wanted[at], y[at] = before[lost].double(), 0, 0
            torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(e.double(), left, rtol=1e-4, atol=1e-4)
            found.append((y, e))
        assert torch.equal(found[1][0], found[2][0]), "wherever the gradient starts"
        assert torch.equal(found[1][1], found[2][1])
