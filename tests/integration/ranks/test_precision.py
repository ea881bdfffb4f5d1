"""What a script does around the hook: a gradient scaler, autocast, parameters kept dense, join."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.compression import CompressionSpec
from eagleray.errors import InputError
from integration.ranks.checks import (
    Net,
    assert_close,
    assert_equal_on_all_ranks,
    batch,
    expected,
    gradients,
    step,
)
from support.worlds import run_world

STEPS = 4
BAD_STEP = 2


def trains(rank, group, scale):
    """Residual and weights after some steps, of which one is not finite on rank 1; the scale at the end."""
    net = Net()
    model = DistributedDataParallel(net)
    hook = compression.attach(model, CompressionSpec(kind="int8", dense_below=0), group)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    for number in range(STEPS):
        before = hook.memory.flat("residual", "mean").clone()
        hook.set_loss_scale(scaler.get_scale())
        optimizer.zero_grad()
        factor = torch.inf if number == BAD_STEP and rank == 1 else 1.0
        scaler.scale(model(batch(number, rank)).square().mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        found = hook.non_finite()
        if number == BAD_STEP:
            assert (found.in_a_row, found.total) == (1, 1)
            assert found.parameter in dict(net.named_parameters())
            assert torch.equal(hook.memory.flat("residual", "mean"), before)
        else:
            assert found.in_a_row == 0
    weights = torch.cat([p.detach().flatten() for p in net.parameters()])
    residual = hook.memory.flat("residual", "mean").clone()
    hook.close()
    return residual, weights, scaler.get_scale()


def scaled(rank, group):
    residual, weights, scale = trains(rank, group, 2.0**10)
    assert scale == 2.0**9, "halved by the one bad step, on all ranks"
    plain, plain_weights, _ = trains(rank, group, 2.0)
    torch.testing.assert_close(residual, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(weights, plain_weights, rtol=0, atol=1e-6)
    everyone = [torch.empty_like(weights) for _ in range(group.world_size)]
    dist.all_gather(everyone, weights)
    assert all(torch.equal(one, weights) for one in everyone)


def autocast(rank, group):
    net, alone = Net(), Net()
    model = DistributedDataParallel(net)
    hook = compression.attach(model, "none", group)
    for one in (model, alone):
        with torch.autocast("cpu", torch.bfloat16):
            loss = one(batch(0, rank)).float().square().mean()
        loss.backward()
    for name, gradient in gradients(alone).items():
        dist.all_reduce(gradient)
        found = net.get_parameter(name).grad
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, gradient / group.world_size)
    hook.close()


def bf16_parameters(rank, group):
    """What their gradients have is less than a float32 has: any kind takes them."""
    wanted = expected([0], group.world_size)
    for kind in ("none", "int8", "topk", "powersgd", "fourbit_adam"):
        net = Net(torch.bfloat16)
        model = DistributedDataParallel(net)
        make = compression.MomentumAdam if kind == "fourbit_adam" else torch.optim.SGD
        optimizer = make(net.parameters(), lr=0.01)
        fields = {"kind": kind, "dense_below": 0, "ratio": 0.1, "rank": 2, "warmup_steps": 1}
        spec = CompressionSpec(**CompressionSpec.without_others(fields))
        hook = compression.attach(model, spec, group, optimizer=optimizer)
        for number in range(4):
            optimizer.zero_grad()
            model(batch(number, rank, torch.bfloat16)).square().mean().backward()
            if number == 0 and kind in ("none", "int8"):
                found = {name: one.float() for name, one in gradients(net).items()}
                assert_close(found, wanted, "int8")
            optimizer.step()
        assert_equal_on_all_ranks(dict(net.named_parameters()))
        assert all(p.isfinite().all() for p in net.parameters()), kind
        hook.close()


def kept_dense(rank, group):
    model = DistributedDataParallel(Net())
    spec = CompressionSpec(kind="int4", dense_below=0, keep_dense=("first.weight",))
    hook = compression.attach(model, spec, group)
    found, wanted = step(model, rank, 0), expected([0], group.world_size)
    torch.testing.assert_close(found["first.weight"], wanted["first.weight"])
    assert (found["second.weight"] - wanted["second.weight"]).abs().max() > 1e-4, "four bits"
    hook.close()


def joined_with_a_pair(rank, group):
    for spec in ("onebit_adam", CompressionSpec(kind="auto", fidelity="medium")):
        net = Net()
        model = DistributedDataParallel(net)
        optimizer = compression.MomentumAdam(net.parameters())
        hook = compression.attach(model, spec, group, optimizer=optimizer)
        name = hook.compressor.name
        with pytest.raises(InputError, match=rf"{name} does not work within join\(\)"), model.join():
            step(model, rank, 0)
        hook.close()


def all_of_them(rank, world_size):
    torch.set_num_threads(1)
    group = groups.new_group("gradients", backend="gloo", timeout_s=30)
    for one in (scaled, autocast, bf16_parameters, kept_dense, joined_with_a_pair):
        one(rank, group)


def test_around_the_hook():
    run_world(2, all_of_them, timeout_s=60)
