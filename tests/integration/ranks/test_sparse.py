"""The sparse compressors on real ranks, through DDP: replicas stay equal to the last bit, the loss falls."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.compression.randomk import RandomK
from eagleray.compression.topk import TopK
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
