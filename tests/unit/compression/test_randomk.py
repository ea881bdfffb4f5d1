import math

import pytest
import torch

from eagleray.compression.layout import Bucket, Layout
from eagleray.compression.memory import Memory
from eagleray.compression.randomk import RandomK, _Strata
from eagleray.compression.topk import count
from eagleray.compression.wire import Step
from support.ranks import World, wires

SHAPES = {"a": (90, 100), "bias": (100,), "b": (70, 130), "wide": (3, 7_000), "c": (40, 40)}
SIZES = {name: math.prod(shape) for name, shape in SHAPES.items()}


def made(seed, rank):
    return {
        name: torch.randn(numel, generator=torch.Generator().manual_seed(1000 * seed + 10 * rank + i))
        for i, (name, numel) in enumerate(SIZES.items())
    }


def mean_residual(world):
    flats = [memory.flat("residual", "mean") for memory in world.memories]
    return world.layout.flat_views(torch.stack(flats).mean(0))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_nothing_is_lost_and_k_numbers_are_sent(size):
    world = World(size, SHAPES, lambda: RandomK(0.03))
    decoded, true = ({name: torch.zeros(numel) for name, numel in SIZES.items()} for _ in range(2))
    for step in range(1, 11):
        given = [made(step, rank) for rank in range(size)]
        means = world.exchange(given, step)
        for name, mean in means.items():
            decoded[name] += mean
            true[name] += torch.stack([one[name].double() for one in given]).mean(0).float()
            k = SIZES[name] if name == "bias" else count(SIZES[name], 0.03)
            assert 0.95 * k <= int(mean.count_nonzero()) <= k
    left = mean_residual(world)
    for name in SHAPES:
        torch.testing.assert_close(decoded[name] + left[name].flatten(), true[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_buckets_and_kernels_change_no_bit(size, monkeypatch):
    found = []
    for kernels, buckets in (
        ("", [list(SHAPES)]),
        ("", [["c"], ["wide", "b"], ["bias", "a"]]),
        ("eager", [[name] for name in SHAPES]),
    ):
        monkeypatch.setenv("EAGLERAY_KERNELS", kernels)
        world = World(size, SHAPES, lambda: RandomK(0.05), buckets)
        means = [world.exchange([made(step, rank) for rank in range(size)], step) for step in range(1, 5)]
        found.append(([one[name].numpy().tobytes() for one in means for name in SHAPES], world.state_bits()))
    assert found[0] == found[1] == found[2]


def test_a_loss_scale_changes_nothing_else():
    plain, scaled = World(2, SHAPES, lambda: RandomK(0.05)), World(2, SHAPES, lambda: RandomK(0.05))
    for step in range(1, 4):
        given = [made(step, rank) for rank in range(2)]
        means = plain.exchange(given, step)
        larger = scaled.exchange([{n: g * 256 for n, g in one.items()} for one in given], step, 256.0)
        assert all(torch.equal(larger[name], means[name] * 256) for name in SHAPES)
    assert plain.state_bits() == scaled.state_bits()


@pytest.mark.parametrize("size", [2, 3])
def test_a_rank_without_a_gradient_keeps_its_residual(size):
    world = World(size, SHAPES, lambda: RandomK(0.03))
    world.exchange([made(1, rank) for rank in range(size)], 1)
    place = world.layout.places["b"]
    kept = [
        memory.flat("residual", "mean")[place.start : place.start + place.numel] for memory in world.memories
    ]
    before = [one.clone() for one in kept]
    means = world.exchange([{**made(2, rank), "b": torch.zeros(SIZES["b"])} for rank in range(size)], 2)
    assert means["b"].eq(0).all()
    assert all(torch.equal(one, other) for one, other in zip(kept, before, strict=True))


@pytest.mark.parametrize(("size", "value"), [(1, math.nan), (2, math.inf), (3, -1e30)])
def test_what_is_not_finite_is_seen_by_all_and_kept_by_none(size, value):
    world = World(size, SHAPES, lambda: RandomK(0.03))
    world.exchange([made(1, rank) for rank in range(size)], 1)
    given = [made(2, rank) for rank in range(size)]
    given[-1]["wide"][12_345] = value
    means = world.exchange(given, 2)
    assert world.bad == [None, "wide"]
    assert means["wide"].isnan().all()
    assert means["a"].isfinite().all()
    for memory in world.memories:
        assert memory.flat("residual", "mean").isfinite().all()
    given[0]["bias"][3] = math.nan
    given[-1]["wide"][12_345] = 1.0
    means = world.exchange(given, 3)
    assert world.bad[2] == "bias"
    assert means["bias"].isnan().any()
    assert means["wide"].isfinite().all()


def test_the_numbers_chosen_are_others_at_each_step_also_after_a_resume(monkeypatch):
    layout = Layout([("a", (100, 100)), ("b", (100, 100))], world_size=1)
    memory, drawn, seen = Memory(layout, torch.device("cpu")), [], torch.zeros(2, 10_000)
    draw = _Strata.draw
    monkeypatch.setattr(_Strata, "draw", lambda *told: drawn.append(draw(*told)) or drawn[-1])
    for _ in range(2):
        randomk = RandomK(0.01)
        randomk.bind(layout, wires(1)[0], memory)
        plan = randomk.plan(Bucket(tuple(layout.places.values()), (0, 10_000)), torch.device("cpu"))
        for number in range(1, 101):
            assert list(plan.run(torch.ones(20_000), Step(number, 0))) == [None]
    for at in drawn:
        assert torch.equal(at, at.unique()), "ascending, and no number twice"
        a, b = at.view(2, 100)
        assert not torch.equal(a, b - 10_000)
        seen.view(-1)[at] += 1
    assert len({tuple(at.tolist()) for at in drawn}) == 200
    assert seen.sum(1).tolist() == [20_000, 20_000]
    assert 0.84 < float((seen > 0).float().mean()) < 0.89, "1 - 0.99^200 of all"


def test_bytes():
    world = World(4, {"a": (1000, 1000)}, lambda: RandomK(0.01))
    world.exchange([{"a": torch.ones(1_000_000)}] * 4, 1)
    assert world.wires[0].sent_bytes < 2 * 3 / 4 * 10_000 * 1.3
