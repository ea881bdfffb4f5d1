"""What ranks agree on, in a world of one and of three."""

import pytest
import torch
from torch import nn

from eagleray import groups
from eagleray.errors import PeerLost, TrainingError
from eagleray.training.agreement import Agreement, Seen
from support.worlds import run_world


def agrees(rank, world_size):
    group = groups.new_group("votes", backend="gloo", timeout_s=120)
    agreement = Agreement(group)
    total = sum(range(world_size))
    assert agreement.sum({"rank": rank, "half": 0.5}) == {"rank": total, "half": 0.5 * world_size}
    large = float(2**40 + rank)  # float32 could not hold it
    assert agreement.sum({"large": large}) == {"large": 2.0**40 * world_size + total}
    assert agreement.sum({}) == {}

    vote = agreement.vote(stop=rank == world_size - 1, num_next=4 + rank, consumed=[rank, 2**40])
    later = agreement.vote(stop=False, num_next=1, consumed=[1])
    seen = Seen(is_asked_to_stop=True, num_next=4, consumed=(total, world_size * 2**40))
    assert vote.result() == seen
    assert vote.result() == seen
    assert later.result() == Seen(is_asked_to_stop=False, num_next=1, consumed=(world_size,))

    assert agreement.gather([rank, -rank]) == [[one, -one] for one in range(world_size)]
    sends_a_state(agreement, rank, world_size)
    agreement.same("the step", 7)
    agreement.same("the digest", "a" * 64)
    averages_buffers(agreement, rank, world_size)
    if world_size == 3:
        names_the_odd_rank(agreement, rank)
        lost(agreement, rank)
    groups.close(group)


def sends_a_state(agreement, rank, world_size):
    source = world_size - 1
    tensors = {
        "weight": torch.arange(6.0).view(2, 3),
        "turned": torch.arange(6, dtype=torch.bfloat16).view(2, 3).t(),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "flags": torch.tensor([True, False, True]),
        "nothing": torch.empty(0, dtype=torch.float64),
    }
    document = {"step": 7, "names": ["ä", None]}
    given = (tensors, document) if rank == source else (None, None)
    found, said = agreement.broadcast(source, *given)
    assert said == document
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)
    assert agreement.broadcast(source, {}, None) == ({}, None)


def averages_buffers(agreement, rank, world_size):
    module = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))
    norm = module[0]
    norm.running_mean.fill_(float(rank))
    norm.running_var.copy_(torch.arange(4.0) + rank)
    norm.num_batches_tracked.fill_(10 + rank)
    module.register_buffer("tiny", torch.tensor(1e-12 * rank, dtype=torch.float64))
    weight = module[1].weight.clone()
    agreement.average_buffers(module)
    mean = sum(range(world_size)) / world_size
    assert torch.equal(norm.running_mean, torch.full((4,), mean))
    assert torch.equal(norm.running_var, torch.arange(4.0) + mean)
    assert int(norm.num_batches_tracked) == 10
    assert module.tiny.dtype == torch.float64
    assert float(module.tiny) == pytest.approx(1e-12 * mean)
    assert torch.equal(module[1].weight, weight)
    agreement.average_buffers(nn.Linear(2, 2))


def names_the_odd_rank(agreement, rank):
    with pytest.raises(TrainingError, match=r"the step is not .*: rank 1 has 8, the others have 7"):
        agreement.same("the step", 8 if rank == 1 else 7)
    long = "x" * 100
    with pytest.raises(TrainingError, match=r"rank 2 has x+"):
        agreement.same("long text", long + ("!" if rank == 2 else "?"))


def lost(agreement, rank):
    if rank == 2:
        groups.break_groups()
        return
    with pytest.raises(PeerLost, match=rf"rank {rank} of 3: summing loss failed"):
        agreement.sum({"loss": 1.0})
    with pytest.raises(PeerLost, match="voting on a step failed"):
        agreement.vote(stop=True, num_next=1, consumed=[]).result()


@pytest.mark.parametrize("world_size", [1, 3])
def test_agreement(world_size):
    run_world(world_size, agrees)
