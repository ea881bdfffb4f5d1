"""The hook on worlds of two and three ranks; each world is started once and runs every check."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.errors import InputError
from eagleray.specs.compression import CompressionSpec
from integration.ranks.checks import CHECKS, KINDS, MANY_BUCKETS, run_checks, spec_of, trained
from support.worlds import run_world


@pytest.fixture(scope="module")
def failures():
    """By world size: each rank's failed checks. Both at once: ranks mostly wait for each other."""
    sizes = (2, 3)
    with ThreadPoolExecutor(len(sizes)) as worlds:
        found = worlds.map(lambda world_size: run_world(world_size, run_checks, timeout_s=170), sizes)
        return dict(zip(sizes, found, strict=True))


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", CHECKS)
def test_hook(failures, world_size, name):
    found = {rank: failed[name] for rank, failed in enumerate(failures[world_size]) if name in failed}
    assert not found, "\n".join(f"rank {rank}:\n{text}" for rank, text in found.items())


def long(rank, world_size, steps):
    torch.set_num_threads(1)
    for kind in KINDS:
        assert torch.equal(trained(kind, rank, steps, 25), trained(kind, rank, steps, MANY_BUCKETS)), kind


@pytest.mark.parametrize(
    ("world_size", "steps"), [(4, 20), *(pytest.param(n, 1000, marks=pytest.mark.slow) for n in (2, 3, 4))]
)
def test_weights_stay_equal_to_the_last_bit(world_size, steps):
    run_world(world_size, long, steps, timeout_s=600)


def alone(rank, world_size):
    group = groups.new_group("gradients", backend="gloo", timeout_s=120)
    before = threading.active_count()
    net = nn.Linear(3, 1, bias=False)
    model = DistributedDataParallel(net)
    hook = compression.attach(model, spec_of("bf16"), group)
    value = 1 + 2.0**-20  # not a bf16
    model(torch.full((1, 3), value)).sum().backward()
    assert net.weight.grad is not None
    assert torch.equal(net.weight.grad, torch.full((1, 3), value))
    assert hook.stats() == compression.Stats()
    assert threading.active_count() == before
    for bad, told in ((torch.nan, (1, 1)), (-torch.inf, (2, 2)), (1.0, (0, 2)), (torch.inf, (1, 3))):
        for _ in range(2 if bad == 1.0 else 1):
            model(torch.full((1, 3), bad)).sum().backward()
            model.zero_grad()
        found = hook.non_finite()
        assert (found.in_a_row, found.total, found.parameter, found.incomplete) == (*told, "weight", 0)
        assert hook.non_finite() == found, "asking twice counts once"
    state = hook.collect_state()
    assert state is not None
    hook.load_state_dict(state)
    with pytest.raises(InputError, match="version 99"):
        hook.load_state_dict({"version": 99})
    hook.close()
    net = nn.Linear(3, 1, bias=False)
    model = DistributedDataParallel(net)
    hook = compression.attach(model, spec_of("bf16"), group, rehearse=True)
    model(torch.full((1, 3), value)).sum().backward()
    assert net.weight.grad is not None
    assert torch.equal(net.weight.grad, torch.ones(1, 3)), "rehearsed: as the format leaves it"
    assert hook.stats().num_buckets == 1
    assert hook.stats().sent_bytes == 0
    hook.close()
    net = nn.Linear(3, 1, bias=False)
    model = DistributedDataParallel(net)
    corrected = CompressionSpec(kind="topk", momentum_correction=True)  # the layer is small: not sparse
    hook = compression.attach(model, corrected, group)
    for momentum in (1.0, 1.9):
        model.zero_grad()
        model(torch.full((1, 3), 1.0)).sum().backward()
        assert net.weight.grad is not None
        torch.testing.assert_close(net.weight.grad, torch.full((1, 3), momentum))
    hook.close()


def test_one_rank_sends_nothing_and_keeps_its_gradient():
    run_world(1, alone)
