"""What becomes of residuals in a checkpoint and when the number of ranks changes; the ranks are pretended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from eagleray.compression import make_compressor, state
from eagleray.compression.layout import Bucket, Layout, Place
from eagleray.compression.memory import Memory
from eagleray.errors import InputError
from eagleray.packaging import flatten, unflatten
from eagleray.specs.compression import CompressionSpec
from support.ranks import in_lockstep, same_bits, wires

SHAPES = {"body.weight": (70, 33), "body.bias": (33,), "head.weight": (5, 41, 2)}


def layout(world_size: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Layout:
    return Layout(shapes.items(), world_size=world_size, dense_below=0)


def memories(world_size: int, scale: float = 1.0) -> list[Memory]:
    """Each rank's own residual, a mean of another shape, and a factor that all have alike."""
    found = []
    for rank in range(world_size):
        memory = Memory(layout(world_size), torch.device("cpu"))
        generator = torch.Generator().manual_seed(rank)
        for slot in ("residual", "momentum"):
            for view in memory.layout.flat_views(memory.flat(slot, "mean")).values():
                view.copy_(scale * torch.randn(view.shape, generator=generator))
        memory.tensor("carry", "head.weight", "mean", (3, 7))[0].fill_(float(rank))
        memory.tensor("factor", "body.weight", "same", (4, 70))[0].copy_(torch.arange(280.0).view(4, 70))
        found.append(memory)
    return found


def collected(of: list[Memory], **options: Any) -> dict[str, Any]:
    """Through the form in which a checkpoint holds it."""
    ends = wires(len(of))
    found = in_lockstep(
        [state.collect(memory, end, 7, "topk", **options) for memory, end in zip(of, ends, strict=True)]
    )
    assert all(one is None for one in found[1:])
    return unflatten(*flatten(found[0]))


def loaded(
    saved: dict[str, Any],
    world_size: int,
    compressor: str = "topk",
    shapes=SHAPES,
    sends_residual: Callable[[Place], bool] = lambda place: not place.is_dense,
) -> tuple[list[Memory], list[str]]:
    found = [Memory(layout(world_size, shapes), torch.device("cpu")) for _ in range(world_size)]
    notes = [
        state.load(saved, memory, compressor, rank=rank, world_size=world_size, sends_residual=sends_residual)
        for rank, memory in enumerate(found)
    ]
    assert all(one == notes[0] for one in notes)
    return found, notes[0]


def mean_of(memories: list[Memory], slot: str = "residual") -> Tensor:
    return torch.stack([memory.flat(slot, "mean").double() for memory in memories]).mean(0)


def assert_same_mass(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert abs(found.sum() - wanted.sum()) <= 1e-6 * wanted.abs().sum()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(state, "PIECE", 512)  # several rounds, the last one short


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 2), (3, 2), (4, 1), (2, 4)])
@pytest.mark.parametrize("per_rank", [False, True])
def test_the_mean_is_kept_from_any_number_of_ranks_to_any_other(before, after, per_rank):
    old = memories(before)
    untouched = [memory.flat("residual", "mean").clone() for memory in old]
    new, notes = loaded(collected(old, per_rank=per_rank), after)
    assert notes == []
    assert same_bits([memory.flat("residual", "mean") for memory in old][:1] + untouched[:1])
    for slot in ("residual", "momentum"):
        assert_same_mass(mean_of(new, slot), mean_of(old, slot))
    if before != after or not per_rank:
        assert same_bits([memory.flat("residual", "mean") for memory in new])
    for memory in new:
        torch.testing.assert_close(
            sum(m.tensor("carry", "head.weight", "mean", (3, 7))[0] for m in new) / after,
            torch.full((3, 7), (before - 1) / 2),
        )
        factor, is_new = memory.tensor("factor", "body.weight", "same", (4, 70))
        assert not is_new
        assert factor[3, 69] == 279


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_ranks_own_comes_back_to_the_last_bit_at_the_same_number(world_size):
    old = memories(world_size)
    new, _ = loaded(collected(old, per_rank=True), world_size)
    for before, after in zip(old, new, strict=True):
        assert same_bits([before.flat("residual", "mean"), after.flat("residual", "mean")])
        assert same_bits([before.flat("momentum", "mean"), after.flat("momentum", "mean")])


def test_the_mean_of_saved_ranks_has_the_bits_of_the_saved_mean():
    own, _ = loaded(collected(memories(3), per_rank=True), 2)
    mean, _ = loaded(collected(memories(3)), 2)
    assert same_bits([own[0].flat("residual", "mean"), mean[0].flat("residual", "mean")])


def test_a_state_is_keyed_by_the_parameters_name_and_is_one_model_large():
    saved = collected(memories(3))
    assert saved["mean"]["residual"].keys() == SHAPES.keys()
    assert all(saved["mean"]["residual"][name].shape == shape for name, shape in SHAPES.items())
    assert saved["parameters"]["head.weight"] == [5, 41, 2]
    assert (saved["version"], saved["compressor"], saved["world_size"]) == (2, "topk", 3)


def test_another_compressor_takes_over_the_residual_and_nothing_else():
    old = memories(2)
    new, notes = loaded(collected(old), 2, "int8")
    assert_same_mass(mean_of(new), mean_of(old))
    assert new[0].flats.keys() == {"residual"}
    assert not new[0].tensors
    assert notes == [
        "compression was topk and is int8, so what only the first one uses is left behind "
        "(carry, factor, momentum); the residual goes over"
    ]


@pytest.mark.parametrize(
    ("kind", "owed"),
    [
        ("int8", {"body.bias"}),
        ("powersgd", {"body.bias", "head.weight"}),  # too small for its vectors
        ("bf16", {*SHAPES}),
        ("fp16", {*SHAPES}),
        ("none", {*SHAPES}),
        ("auto", {*SHAPES}),  # begins uncompressed
    ],
)
def test_what_the_next_compressor_would_not_send_goes_out_with_the_first_gradients(kind, owed):
    spec = CompressionSpec.model_validate(CompressionSpec.without_others({"kind": kind, "rank": 5}))
    made, old = make_compressor(spec), memories(2)
    made.bind(layout(2), wires(2)[0], Memory(layout(2), torch.device("cpu")))
    memory = loaded(collected(old), 2, kind, sends_residual=made.sends_residual)[0][0]
    assert memory.owed == owed
    before, bucket = memory.flats["residual"][1].clone(), Bucket.packed(memory.layout.places.values())
    gradient = torch.ones(bucket.numel)
    memory.repay(bucket.parts, gradient, 8.0)
    assert memory.owed == set()
    for place, start in bucket.parts:
        kept, sent = (
            one[place.start : place.start + place.numel] for one in (before, memory.flats["residual"][1])
        )
        if place.name in owed:
            assert torch.equal(gradient[start : start + place.numel], 1 + 8 * kept)
            assert not sent.any()
        else:
            assert torch.equal(sent, kept)
            assert (gradient[start : start + place.numel] == 1).all()


def test_parameters_that_are_new_or_gone_are_said():
    shapes = {"new.weight": (3, 3), **SHAPES}
    del shapes["head.weight"]
    old = memories(2)
    new, notes = loaded(collected(old), 2, shapes=shapes)
    views = new[0].layout.flat_views(new[0].flat("residual", "mean"))
    before = old[0].layout.flat_views(mean_of(old))
    torch.testing.assert_close(views["body.weight"].double(), before["body.weight"], rtol=1e-6, atol=1e-7)
    assert not views["new.weight"].any()
    assert notes == [
        "the compression state has head.weight, which this model does not train: left out",
        "the compression state has nothing of new.weight: they begin at zero",
    ]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            {"other.weight": (70, 33)},
            r"of another model: it has body\.weight, body\.bias, head\.weight, and ",
        ),
        (
            {"body.weight": (33, 70)},
            r"its body\.weight has the shape \(70, 33\), and this model's \(33, 70\)",
        ),
    ],
)
def test_another_models_state_is_refused(shapes, message):
    with pytest.raises(InputError, match=message):
        loaded(collected(memories(2)), 2, shapes=shapes)


def test_a_later_versions_state_is_refused_and_an_earlier_ones_holds_nothing():
    with pytest.raises(InputError, match="version 99"):
        loaded({"version": 99}, 2)
    new, notes = loaded({"version": 1, "compressor": "bf16"}, 2)
    assert not new[0].flats
    assert notes == []


def test_what_the_state_does_not_have_is_zero():
    memory = memories(1)[0]
    nothing = {"version": 1, "compressor": "topk"}
    state.load(nothing, memory, "topk", rank=0, world_size=1, sends_residual=lambda place: True)
    assert not memory.flat("residual", "mean").any()
    assert not memory.tensors


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (4, 4), (1, 2)])
def test_a_planned_change_keeps_the_mean(before, after):
    old = memories(before)
    wanted, momentum, ends = mean_of(old), mean_of(old, "momentum"), wires(before)
    in_lockstep([state.even_out(memory, end, 9) for memory, end in zip(old, ends, strict=True)])
    assert same_bits([memory.flat("residual", "mean") for memory in old])
    assert_same_mass(mean_of(old), wanted)
    new = (old * after)[:after]  # those that stay, and those that join with the state of one that stays
    assert_same_mass(mean_of(new), wanted)
    assert_same_mass(mean_of(new, "momentum"), momentum)
    assert torch.equal(
        old[-1].tensor("carry", "head.weight", "mean", (3, 7))[0], torch.full((3, 7), (before - 1) / 2)
    )


def test_ranks_that_join_owing_nothing_take_no_weight_from_the_others():
    old = memories(2)
    wanted = mean_of(old)
    assert state.reweigh(old[0], 2, 3) == state.reweigh(old[1], 2, 3) == state.Lost(0, 0.0, 0.0)
    joined = Memory(layout(3), torch.device("cpu"))
    assert_same_mass(mean_of([*old, joined]), wanted)


def test_an_unplanned_loss_takes_the_lost_ranks_share_and_no_more(caplog):
    old = memories(4)
    lost_share = old[2].flat("residual", "mean").double() / 4
    wanted = mean_of(old) - lost_share
    left = [memory for rank, memory in enumerate(old) if rank != 2]
    found = [state.reweigh(memory, 4, 3) for memory in left]
    assert_same_mass(mean_of(left), wanted)
    assert all((one.num_ranks, one.share) == (1, 0.25) for one in found)
    assert found[0].norm == pytest.approx(float(lost_share.norm()), rel=0.1)
    assert "1 of 4 ranks were lost" in caplog.text
