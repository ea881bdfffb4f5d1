"""What `attach` takes and refuses."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.compression.topk import TopK
from eagleray.errors import InputError, SpecError
from eagleray.groups import making
from eagleray.specs.train import CompressionSpec
from integration.ranks.checks import Net, batch
from support.worlds import run_world


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))


def refused(rank, world_size):
    """All of it on one rank: nothing waits for a peer."""
    model, open_before = DistributedDataParallel(Net()), len(making._open_groups)
    momentum = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    adam = torch.optim.Adam(model.parameters())
    corrected = {"kind": "topk", "momentum_correction": True}
    cases = [
        (Net(), "none", None, InputError, "takes a DistributedDataParallel model, not Net"),
        (model, None, None, InputError, "compression is None; give the name of a kind"),
        (model, 5, None, InputError, "compression is 5"),
        (model, TopK, None, InputError, "compression is <class"),
        (model, {"kind": "powersgd", "rank": 0}, None, SpecError, "compression: rank"),
        (model, {"kind": "int8", "momentum_correction": True}, None, SpecError, "only topk has a momentum"),
        (model, {"kind": "int8", "blocks": 3}, None, SpecError, "compression: blocks"),
        (model, corrected, momentum, InputError, "SGD has one of 0.9"),
        (model, TopK(momentum=0.9), adam, InputError, "Adam has one of 0.9"),
        (model, {"kind": "int8", "keep_dense": ["no"]}, None, InputError, "trains no no"),
        (DistributedDataParallel(Complex()), "int8", None, InputError, "w is torch.complex64"),
        (
            DistributedDataParallel(nn.Embedding(50, 40, sparse=True)),
            *("int8", None, InputError, "'.the model.' has sparse gradients"),
        ),
    ]
    for wrapped, wanted, optimizer, kind, message in cases:
        with pytest.raises(kind, match=message):
            compression.attach(wrapped, wanted, optimizer=optimizer)
        assert len(making._open_groups) == open_before, message
    hook = compression.attach(model, corrected, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    assert hook.compressor.momentum == 0.9
    with pytest.raises(InputError, match="has a communication hook already"):
        compression.attach(model, "none")
    hook.close()
    assert len(making._open_groups) == open_before
    given = DistributedDataParallel(nn.Embedding(50, 40))
    hook = compression.attach(given, {"kind": "int4", "dense_below": 7})
    assert hook._engine.layout.places["weight"].is_dense is False
    hook.close()


def test_what_does_not_fit_is_refused_in_words_and_leaves_no_group():
    run_world(1, refused)


def over_a_subgroup(rank, world_size):
    """Ranks 1 and 2 train one model, rank 0 another by itself."""
    members = [0] if rank == 0 else [1, 2]
    subgroup = dist.new_group(members, use_local_synchronization=True)
    model = DistributedDataParallel(Net(), process_group=subgroup)
    everybody = groups.new_group("gradients", backend="gloo", timeout_s=30)
    with pytest.raises(InputError, match=f"has 3 ranks, but DDP's process_group has {len(members)}"):
        compression.attach(model, "none", everybody)
    hook = compression.attach(model, "none")
    assert hook._group.world_size == len(members)
    wanted = Net()
    for member in members:
        (wanted(batch(5, member)).square().mean() / len(members)).backward()
    model(batch(5, rank)).square().mean().backward()
    for name, parameter in wanted.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(model.module.get_parameter(name).grad, parameter.grad)
    hook.close()


def test_a_model_over_some_of_the_ranks_is_exchanged_among_them():
    run_world(3, over_a_subgroup, timeout_s=60)


def with_nothing_in_it(rank, world_size):
    """A parameter of no elements beside one that is compressed."""
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 0, bias=False))
    for kind in ("none", "int8", "int8_ring", "topk", "randomk", "powersgd"):
        model = DistributedDataParallel(net)
        hook = compression.attach(model, CompressionSpec(kind=kind, dense_below=0))
        assert hook._engine.layout.places["1.weight"].is_dense
        for _ in range(2):
            (model.module[0](torch.ones(1, 8)).sum() + model(torch.ones(1, 8)).sum()).backward()
        hook.close()


def test_an_empty_parameter_travels_with_the_others():
    run_world(2, with_nothing_in_it, timeout_s=60)
