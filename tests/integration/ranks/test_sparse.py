"""The sparse compressors on real ranks, through DDP: replicas stay equal to the last bit, the loss falls."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.compression.randomk import RandomK
from eagleray.compression.topk import TopK
from integration.ranks.checks import (
    MANY_BUCKETS,
    Net,
    assert_equal_on_all_ranks,
    batch,
    expected,
    gradients,
)
from support.worlds import run_world

COMPRESSORS = {
    "gathered": lambda: TopK(0.02, warmup_steps=9, momentum=0.9),
    "split": lambda: TopK(0.2, warmup_steps=0, momentum=0.9),
    "plain": lambda: TopK(0.02, warmup_steps=0),
    "random": lambda: RandomK(0.05),
}


def train(rank, world_size, steps):
    """First and last loss, and a checksum of each step's gradients, by compressor."""
    torch.set_num_threads(1)
    found = {}
    for name, make in COMPRESSORS.items():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(60, 120), nn.ReLU(), nn.Linear(120, 120), nn.ReLU(), nn.Linear(120, 60))
        group = groups.new_group(f"gradients-{name}", backend="gloo", timeout_s=30)
        model = DistributedDataParallel(net, bucket_cap_mb=0.05)
        hook = compression.attach(model, make(), group)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(16, 60, generator=torch.Generator().manual_seed(rank))
        told = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model(x) - x.roll(1, dims=1)).square().mean()
            loss.backward()
            gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
            told.append((loss.item(), int(gradient.view(torch.int32).long().sum())))
            optimizer.step()
        residual = hook.memory.flat("residual", "mean")
        assert 0 < float(residual.norm()) < 100
        assert hook.stats().ratio > 1.2
        found[name] = (told, torch.cat([p.detach().flatten() for p in net.parameters()]).view(torch.int32))
        hook.close()
        groups.close(group)
    return found


def check(world_size, steps):
    ranks = run_world(world_size, train, steps, timeout_s=500)
    for name, (told, weights) in ranks[0].items():
        for other in ranks[1:]:
            assert [checksum for _, checksum in other[name][0]] == [checksum for _, checksum in told]
            assert torch.equal(other[name][1], weights)
        losses = [loss for loss, _ in told]
        assert losses[-1] < 0.98 * losses[0], (name, losses)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_replicas_stay_equal(world_size):
    check(world_size, 30)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_replicas_stay_equal_for_1000_steps(world_size):
    check(world_size, 1000)


SETTINGS = {"topk": {"ratio": 0.05, "warmup_steps": 0}, "randomk": {"ratio": 0.1}}


def in_any_buckets(rank, world_size):
    """Accumulated over two backward passes, with parameters that only rank 0 uses: nothing is lost."""
    torch.set_num_threads(1)
    group = groups.new_group("gradients", backend="gloo", timeout_s=30)
    for kind, settings in SETTINGS.items():
        weights = []
        for bucket_cap_mb in (25, MANY_BUCKETS):
            model = DistributedDataParallel(Net(), bucket_cap_mb=bucket_cap_mb, find_unused_parameters=True)
            hook = compression.attach(model, {"kind": kind, "dense_below": 0, **settings}, group)
            sums, wanted = {}, {}
            for seed in range(0, 8, 2):
                model.zero_grad()
                with model.no_sync():
                    model(batch(seed, rank), rank == 0).square().mean().backward()
                model(batch(seed + 1, rank), rank == 0).square().mean().backward()
                found = gradients(model.module)
                assert_equal_on_all_ranks(found)
                mean = expected([seed, seed + 1], world_size, uses_third=lambda rank: rank == 0)
                for name in mean:
                    sums[name] = sums.get(name, 0) + found[name]
                    wanted[name] = wanted.get(name, 0) + mean[name]
            owed = hook.memory.flat("residual", "mean").clone()
            torch.distributed.all_reduce(owed)
            for name, kept in hook.memory.layout.flat_views(owed / world_size).items():
                torch.testing.assert_close(sums[name] + kept, wanted[name], rtol=1e-4, atol=1e-6)
            assert hook.stats().num_buckets == 4 if bucket_cap_mb == 25 else hook.stats().num_buckets > 8
            weights.append(torch.cat([one.flatten() for one in sums.values()]))
            hook.close()
        assert torch.equal(*weights), kind


def test_one_and_many_buckets_no_sync_and_unused_parameters_lose_nothing():
    run_world(2, in_any_buckets, timeout_s=60)
