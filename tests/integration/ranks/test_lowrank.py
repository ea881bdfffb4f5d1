"""powersgd and the momentum pairs on real ranks, through DDP: equal to the last bit, whatever the buckets."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.errors import InputError
from eagleray.specs.compression import CompressionSpec
from support.worlds import run_world

SPECS = {
    "powersgd": CompressionSpec(kind="powersgd", rank=2, dense_below=0),
    "powersgd, warm-up": CompressionSpec(kind="powersgd", rank=3, warmup_steps=3, dense_below=0),
    "onebit_adam": CompressionSpec(kind="onebit_adam", warmup_steps=6),
    "fourbit_adam": CompressionSpec(kind="fourbit_adam", warmup_steps=6, block_size=64),
}
SAVED_AT = 8


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(60, 120), nn.Linear(120, 60)
        self.sometimes, self.frozen = nn.Linear(120, 60), nn.Linear(60, 60)
        self.frozen.requires_grad_(False)

    def forward(self, x, uses_third):
        hidden = self.first(x).relu()
        out = self.second(hidden)
        return self.frozen(out + self.sometimes(hidden) if uses_third else out)


def optimizer_of(spec, net):
    if spec.kind == "powersgd":
        return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return compression.MomentumAdam(net.parameters(), lr=3e-3)


def train(rank, spec, steps, bucket_cap_mb, group, mesh):
    """Losses, and all weights; after SAVED_AT steps in a new model with the state of the old one."""
    net, losses = Net(), []
    options = {
        "bucket_cap_mb": bucket_cap_mb,
        "find_unused_parameters": True,
        "gradient_as_bucket_view": bucket_cap_mb != 25,
        "process_group": mesh.process_group,
    }
    optimizer = optimizer_of(spec, net)
    model = DistributedDataParallel(net, **options)
    hook = compression.attach(model, spec, group, optimizer=optimizer)
    x = torch.randn(16, 60, generator=torch.Generator().manual_seed(rank))
    for number in range(steps):
        if number == SAVED_AT:
            state = torch.distributed.broadcast_object_list
            saved = [hook.collect_state()]
            state(saved, src=0)
            weights, trained = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
            hook.close()
            net = Net()
            net.load_state_dict(weights)
            optimizer = optimizer_of(spec, net)
            model = DistributedDataParallel(net, **options)
            hook = compression.attach(model, spec, group, optimizer=optimizer)
            hook.load_state_dict(saved[0])
            optimizer.load_state_dict(trained)
        optimizer.zero_grad()
        out = model(x, uses_third=number % 3 == 0 or (number % 3 == 1 and rank == 0))
        loss = (out - x.roll(1, dims=1)).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    ratio = hook.stats().ratio
    hook.close()
    return losses, torch.cat([p.detach().flatten() for p in net.parameters()]).view(torch.int32), ratio


def both(rank, world_size, steps):
    torch.set_num_threads(1)
    found = {}
    mesh = groups.new_group("mesh", backend="gloo", timeout_s=60)
    for name, spec in SPECS.items():
        group = groups.new_group(f"gradients-{name}", backend="gloo", timeout_s=60)
        found[name] = [train(rank, spec, steps, size, group, mesh) for size in (25, 1e-3)]
        groups.close(group)
    groups.close(mesh)
    return found


@pytest.mark.parametrize(
    ("world_size", "steps"),
    [(2, 40), (3, 20), (4, 20), *(pytest.param(n, 1000, marks=pytest.mark.slow) for n in (2, 3, 4))],
)
def test_weights_stay_equal_to_the_last_bit_whatever_the_buckets(world_size, steps):
    ranks = run_world(world_size, both, steps, timeout_s=600)
    for name in SPECS:
        losses, weights, ratio = ranks[0][name][0]
        for found in ranks:
            for _, others, _ in found[name]:
                assert torch.equal(others, weights), name
        assert losses[-1] < 0.9 * losses[0], (name, losses)
        assert ratio > (2 if name == "powersgd" else 1.3), name


def refused(rank, world_size):
    group = groups.new_group("gradients", backend="gloo", timeout_s=30)
    net = nn.Linear(3, 3)
    model = DistributedDataParallel(net)
    for spec, optimizer in (("onebit_adam", torch.optim.AdamW(net.parameters())), ("fourbit_adam", None)):
        with pytest.raises(InputError, match="only MomentumAdam understands"):
            compression.attach(model, spec, group, optimizer=optimizer)
    with pytest.raises(InputError, match="made for compression onebit_adam and fourbit_adam"):
        compression.attach(model, "int8", group, optimizer=compression.MomentumAdam(net.parameters()))
    plain = torch.optim.AdamW(net.parameters())
    hook = compression.attach(model, "int8", group, optimizer=plain)
    net(torch.ones(1, 3)).sum().backward()
    plain.step()
    state = plain.state_dict()
    for one in state["state"].values():
        one["is_frozen"] = True  # as of a pair, after its warm-up
    plain.load_state_dict(state)
    assert not any("is_frozen" in one for one in plain.state.values())
    hook.close()


def test_a_pair_that_does_not_fit_is_refused_when_it_is_attached():
    run_world(1, refused)


def goes_on_alone(rank, world_size):
    """What a step expected that nobody took, as its other rank was lost, is no matter of the next."""
    net, x = nn.Linear(60, 120), torch.ones(1, 60)
    twin = copy.deepcopy(net)
    optimizer, plain = compression.MomentumAdam(net.parameters()), torch.optim.AdamW(twin.parameters())
    model = DistributedDataParallel(net)
    hook = compression.attach(model, "onebit_adam", optimizer=optimizer)
    for _ in range(3):
        optimizer.expect(net.weight, momentum=True)
        for one, its in ((model, optimizer), (twin, plain)):
            its.zero_grad()
            one(x).square().sum().backward()
            its.step()
    assert torch.equal(net.weight, twin.weight)
    hook.close()


def test_a_rank_that_goes_on_alone_takes_its_gradient_for_no_momentum():
    run_world(1, goes_on_alone)
