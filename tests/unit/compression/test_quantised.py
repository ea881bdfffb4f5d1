"""The codec compressors and int8_ring, on ranks of one process; exchanges compare the replicas' bits."""

import pytest
import torch

from eagleray.compression.dry import DryWire
from eagleray.compression.int8_ring import MAX_RANKS, Int8Ring
from eagleray.compression.layout import TILE, Layout
from eagleray.compression.memory import Memory
from eagleray.compression.quantised import SLICE, Quantised
from eagleray.errors import InputError
from support.ranks import World

SHAPES = {
    "embedding": (50, 200),
    "first.weight": (100, 131),
    "first.bias": (100,),
    "second.weight": (3, 7),
    "scale": (),
    "third.weight": (41, 300),
}
MAKERS = {
    "none": lambda: Quantised("raw"),
    "fp16": lambda: Quantised("fp16"),
    "bf16": lambda: Quantised("bf16"),
    "int8": lambda: Quantised("int8"),
    "int4": lambda: Quantised("int4"),
    "int8_ring": Int8Ring,
}
ERRORS = {"none": 1e-6, "fp16": 1e-3, "bf16": 8e-3, "int8": 2e-2, "int4": 0.3, "int8_ring": 0.25}
"""Of the mean in the first steps, relative in norm."""
BUCKETS = [["third.weight", "scale"], ["second.weight"], ["first.bias", "first.weight", "embedding"]]


def gradients(step: int, size: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    common = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return [
        {name: one + 0.5 * torch.randn(one.shape, generator=generator) for name, one in common.items()}
        for _ in range(size)
    ]


def mean(given: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([one[name] for one in given]).mean(0).flatten() for name in SHAPES}


def flat(values: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([values[name].flatten() for name in SHAPES])


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", MAKERS)
def test_the_mean_whatever_the_buckets_and_what_is_lost_comes_later(kind, size):
    one, many = World(size, SHAPES, MAKERS[kind]), World(size, SHAPES, MAKERS[kind], BUCKETS)
    sent, wanted = 0.0, 0.0
    for step in range(1, 13):
        given = gradients(step, size)
        found = flat(one.exchange(given, step))
        assert torch.equal(found, flat(many.exchange(given, step))), "it depends on the buckets"
        right = flat(mean(given))
        if step < 4:
            assert (found - right).norm() <= ERRORS[kind] * right.norm(), step
        sent, wanted = sent + found, wanted + right
    if kind == "none":
        return
    owed = torch.stack([memory.flat("residual", "mean") for memory in one.memories]).mean(0)
    owed = torch.cat([one.layout.flat_views(owed)[name].flatten() for name in SHAPES])
    close = 2e-6 if kind not in ("fp16", "bf16", "int8_ring") else ERRORS["bf16"]
    assert (sent + owed - wanted).norm() <= close * wanted.norm(), "gradient was lost"


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_not_finite_is_told_on_all_ranks_and_enters_nothing(kind, size):
    world = World(size, SHAPES, MAKERS[kind], BUCKETS)
    world.exchange(gradients(1, size), 1)
    for step, value in ((2, torch.nan), (3, torch.inf)):
        given = gradients(step, size)
        given[-1]["first.weight"][3, 77] = value
        found = world.exchange(given, step)
        assert not found["first.weight"].isfinite().all()
        assert found["third.weight"].isfinite().all()
    assert world.exchange(gradients(4, size), 4)["first.weight"].isfinite().all()
    assert world.bad == [None, "first.weight", "first.weight", None]
    for memory in world.memories:
        assert all(tensor.isfinite().all() for _, tensor in memory.flats.values())
        assert all(one.isfinite().all() for _, tensors in memory.tensors.values() for one in tensors.values())


@pytest.mark.parametrize("kind", ["int8", "int4", "int8_ring"])
def test_a_parameter_without_a_gradient_keeps_its_residual(kind):
    world = World(3, SHAPES, MAKERS[kind])
    for step in (1, 2, 3):
        world.exchange(gradients(step, 3), step)
    place = world.layout.places["embedding"]
    kept = [m.flat("residual", "mean")[place.start : place.start + place.numel] for m in world.memories]
    before = [one.clone() for one in kept]
    assert all(one.any() for one in before)
    given = gradients(4, 3)
    for one in given:
        one["embedding"].zero_()
    found = world.exchange(given, 4)
    assert not found["embedding"].any()
    assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))


@pytest.mark.parametrize("kind", ["int8", "int8_ring"])
def test_a_loss_scale_changes_the_unit_of_the_gradient_and_of_nothing_else(kind):
    plain, scaled = World(3, SHAPES, MAKERS[kind]), World(3, SHAPES, MAKERS[kind])
    for step in (1, 2, 3):
        given, scale = gradients(step, 3), 2.0 ** (4 * step)
        found = flat(plain.exchange(given, step))
        times = [{name: one * scale for name, one in each.items()} for each in given]
        assert torch.equal(flat(scaled.exchange(times, step, scale)), found * scale)
    assert plain.state_bits() == scaled.state_bits()


@pytest.mark.parametrize("size", [2, 3])
def test_a_large_bucket_is_cut_into_slices(size):
    rows = 3 * size * SLICE // TILE
    world = World(size, {"weight": (rows, TILE)}, MAKERS["int8"])
    given = [
        {"weight": torch.randn(rows, TILE, generator=torch.Generator().manual_seed(r))} for r in range(size)
    ]
    found = world.exchange(given, 1)["weight"]
    right = torch.stack([one["weight"] for one in given]).mean(0).flatten()
    assert (found - right).norm() < 0.02 * right.norm()
    assert len(world._plans[0][0]._slices) == 3 * (1 if size > 2 else size)


def test_int8_ring_follows_a_gradient_that_grows_and_one_that_comes_late():
    world, size = World(2, {"w": (4, 512)}, Int8Ring), 2
    grown = torch.ones(4, 512)
    grown[2:] = 0.0
    for step in range(1, 16):
        found = world.exchange([{"w": grown * 1.5**step}] * size, step)["w"].view(4, 512)
    assert torch.allclose(found[:2], grown[:2] * 1.5**15, rtol=0.05)
    grown[2:] = 1.0
    total = 0.0
    for step in range(16, 26):
        total = total + world.exchange([{"w": grown}] * size, step)["w"].view(4, 512)
    assert torch.allclose(total[3] / 10, grown[3], rtol=0.3), "the largest of the parameter's ranges serves"


def test_int8_ring_is_refused_where_the_ranks_codes_do_not_fit_into_a_byte():
    cpu = torch.device("cpu")
    for n in (MAX_RANKS, MAX_RANKS + 1):
        model = Layout(SHAPES.items(), world_size=n)
        if n == MAX_RANKS:
            Int8Ring().bind(model, DryWire(n, cpu), Memory(model, cpu))
        else:
            with pytest.raises(InputError, match="at most 127, and this is a group of 128; choose int8"):
                Int8Ring().bind(model, DryWire(n, cpu), Memory(model, cpu))
