"""`auto` on two and three ranks: all choose the same, and replicas stay equal to the bit through it."""

import itertools
import time
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.compression import kernels
from eagleray.compression.automatic import auto, choice, probe
from eagleray.compression.automatic.timeline import Link
from eagleray.compression.stats import NonFinite
from eagleray.specs.compression import CompressionSpec
from integration.ranks.checks import assert_equal_on_all_ranks, gradients
from support.worlds import run_world

NUM_STEPS = 200


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))


def attached(group, **options):
    model = DistributedDataParallel(net(), **options)
    return model, compression.attach(model, CompressionSpec(kind="auto"), group)


def choice_of(hook) -> auto.Choice:
    found = hook.choice()
    assert found is not None
    return found


def kind_of(hook) -> str:
    assert isinstance(hook.compressor, auto.Auto)
    return hook.compressor.kind


def step(model, rank, seed):
    model.zero_grad()
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(100 * seed + rank))
    model(x).square().mean().backward()


def waits_for_the_compiler_of_one_rank(rank, world_size):
    """Uncompressed steps meanwhile; all ranks begin to measure in the same one."""
    said = itertools.chain([True] * (4 * rank), itertools.repeat(False))
    with mock.patch.object(kernels, "is_building", side_effect=said):
        model, hook = attached(groups.new_group("gradients", backend="gloo", timeout_s=30))
        kinds = []
        for seed in range(6):
            step(model, rank, seed)
            kinds.append((kind_of(hook), hook.stats().probe_bytes > 10_000))
            assert_equal_on_all_ranks(gradients(model.module))
        hook.close()
    return kinds


def test_it_waits_for_the_compiler_of_one_rank():
    first, second = run_world(2, waits_for_the_compiler_of_one_rank)
    assert first == second
    assert first[:4] == [("none", False)] * 4
    assert first[4][1]


def chooses_and_settles(rank, world_size):
    """On loopback; returns the record, and what a second hook made of it."""
    started = time.perf_counter()
    group = groups.new_group("gradients", backend="gloo", timeout_s=30)
    model, hook = attached(group, bucket_cap_mb=0.02)
    assert "not chosen yet" in choice_of(hook).reason
    for seed in range(NUM_STEPS):
        step(model, rank, seed)
        if seed == 0:
            assert time.perf_counter() - started < 10
        assert_equal_on_all_ranks(gradients(model.module))
        if choice_of(hook).is_settled:
            break
    record = choice_of(hook)
    assert record.is_settled
    assert record.kind in choice.allowed("high", None, choice.LEAST_LOSSY, world_size)
    assert set(record.predicted_s) >= {"none", "bf16", "fp16", "int8"}
    assert record.kind in record.reason
    assert f"{world_size} ranks" in record.reason
    states = [hook.collect_state()]
    torch.distributed.broadcast_object_list(states)
    hook.close()

    probe.measure_codecs = None
    group = groups.new_group("resumed", backend="gloo", timeout_s=30)
    model, hook = attached(group)
    assert states[0] is not None
    hook.load_state_dict(states[0])
    step(model, rank, 0)
    assert kind_of(hook) == record.kind, "it starts from what was chosen"
    for seed in range(NUM_STEPS):
        step(model, rank, seed)
    resumed = choice_of(hook)
    assert resumed.is_settled
    assert_equal_on_all_ranks(gradients(model.module))
    hook.close()
    return record.to_json(), resumed.to_json()


@pytest.mark.parametrize("world_size", [2, 3])
def test_all_ranks_choose_the_same_and_a_resumed_run_starts_from_it(world_size):
    results = run_world(world_size, chooses_and_settles, timeout_s=100)
    for record, resumed in results[1:]:
        assert (record["kind"], record["predicted_s"]) == (
            results[0][0]["kind"],
            results[0][0]["predicted_s"],
        )
        assert record["measured_s"] == results[0][0]["measured_s"]
        assert resumed["kind"] == results[0][1]["kind"]


def decides_again(rank, world_size):
    """The link is said to be slow at first, and its steps' times are said to drift."""
    links = iter([Link(0.001, 1e6), Link(0.001, 1e12), Link(0.001, 1e12)])
    probe.measure_links = lambda wire, kinds, device, whole: dict.fromkeys(kinds, next(links))
    auto.WINDOW_S, auto._MIN_WINDOW = 0.01, 5
    choice.has_drifted = lambda now, base: True
    choice.rounds_of = lambda tried, step_s: (0, 0)
    group = groups.new_group("gradients", backend="gloo", timeout_s=30)
    model, hook = attached(group, bucket_cap_mb=0.02)
    seen = []
    for seed in range(40):
        step(model, rank, seed)
        seen.append(kind_of(hook))
        assert_equal_on_all_ranks(gradients(model.module))
        if choice_of(hook).is_settled and kind_of(hook) == "none":
            break
    hook.close()
    return seen


def test_all_decide_again_when_the_link_has_changed():
    seen = run_world(3, decides_again)
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][3] in ("int8", "int8_ring")
    assert seen[0][-1] == "none"


def switches_and_owes_nothing(rank, world_size):
    """Through compressors again and again: what they lost comes back, and none of it is lost by none."""
    group = groups.new_group("gradients", backend="gloo", timeout_s=30)
    kinds = itertools.cycle(("int8", "none", "int4", "int8", "none"))
    auto.Auto._life = _changes(kinds)
    model, hook = attached(group, bucket_cap_mb=0.02)
    sums, wanted, seen = {}, {}, []
    for seed in range(10):
        step(model, rank, seed)
        seen.append(kind_of(hook))
        found = gradients(model.module)
        assert_equal_on_all_ranks(found)
        plain = net()
        for other in range(world_size):
            x = torch.randn(16, 64, generator=torch.Generator().manual_seed(100 * seed + other))
            (plain(x).square().mean() / world_size).backward()
        for name, gradient in found.items():
            sums[name] = sums.get(name, 0) + gradient
        for name, gradient in gradients(plain).items():
            wanted[name] = wanted.get(name, 0) + gradient
    assert seen == ["int8", "none", "int4", "int8", "none"] * 2
    for name, total in sums.items():
        torch.testing.assert_close(total, wanted[name], rtol=0, atol=1e-5 * float(wanted[name].abs().max()))
    assert not hook.memory.flats["residual"][1].any(), "none sent what was owed"
    hook.close()


def _changes(kinds):
    def life(self, device):
        while True:
            self._adopt(next(kinds))
            yield

    return life


def test_switches_keep_replicas_equal_and_lose_nothing():
    run_world(2, switches_and_owes_nothing)


def repays_again(rank, world_size):
    """What int8 still owes goes out with the first step of none; nobody takes that one, so with the next."""
    group = groups.new_group("gradients", backend="gloo", timeout_s=30)
    auto.Auto._life = _changes(itertools.chain(("int8", "int8"), itertools.repeat("none")))
    model, hook = attached(group, bucket_cap_mb=0.02, gradient_as_bucket_view=True)
    for seed in range(2):
        step(model, rank, seed)
    owed = hook.memory.flats["residual"][1].clone()
    assert owed.any()
    first = next(model.parameters())
    handle = first.register_hook(lambda gradient: gradient * (torch.nan if rank else 1.0))
    step(model, rank, 2)
    handle.remove()
    assert torch.equal(hook.memory.flats["residual"][1], owed)
    assert hook.non_finite() == NonFinite(1, 1, "0.weight")
    step(model, rank, 3)
    assert not hook.memory.flats["residual"][1].any()
    assert_equal_on_all_ranks(gradients(model.module))
    hook.close()


def test_what_is_owed_goes_out_again_where_nobody_took_the_step():
    run_world(2, repays_again)


def alone(rank, world_size):
    group = groups.new_group("gradients", backend="gloo", timeout_s=30)
    model, hook = attached(group)
    step(model, rank, 0)
    assert choice_of(hook).kind == "none"
    assert "alone" in choice_of(hook).reason
    state = hook.collect_state()
    assert state is not None
    state = hook.collect_state()
    assert state is not None
    hook.load_state_dict(state)
    hook.close()


def test_a_rank_alone_measures_nothing():
    run_world(1, alone)
