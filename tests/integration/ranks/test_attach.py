"""What `attach` takes and refuses."""

import logging

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.compression.topk import TopK
from eagleray.compression.wire import Step, Wire
from eagleray.errors import InputError, SpecError
from eagleray.groups import making
from eagleray.specs.compression import CompressionSpec
from integration.ranks.checks import Net, batch
from support.worlds import run_world


class Own:
    """A compressor of one's own, with some of it wrong."""

    name, keeps_dtype, is_lossy = "own", False, True

    def __init__(self, **wrong):
        self.__dict__ |= {name: value for name, value in wrong.items() if value is not None}
        self.lacking = {name for name, value in wrong.items() if value is None}

    def __getattribute__(self, name):
        if name in object.__getattribute__(self, "__dict__").get("lacking", ()):
            raise AttributeError(name)
        return object.__getattribute__(self, name)

    def bind(self, layout, wire, memory):
        self.wire = wire

    def sends_residual(self, place):
        return True

    def plan(self, bucket, device):
        self.messages = [self.wire.message(8, device) for _ in range(self.wire.world_size)]
        return self

    def run(self, gradient, step):
        own = self.wire.rank
        others = [None if rank == own else message for rank, message in enumerate(self.messages)]
        pending = self.wire.gather(step, 0, self.messages[own], others)
        yield
        pending.wait()
        return pending.bad_parameter


def fails(error):
    """A method that raises it."""

    def method(*arguments):
        raise error

    return method


def returns(value, *, yields=True):
    """A `run` that does nothing, and returns this."""

    def run(gradient, step):
        yield
        return value

    return run if yields else lambda gradient, step: value


def keeps_a_wrong_shape(gradient, step):
    yield
    gradient.copy_(torch.zeros(3))
    return -1


WRONG = [
    (
        {"bind": fails(KeyError("first"))},
        r"bind raised KeyError: 'first' .*test_attach.*; bind\(layout, wire, memory\) t",
    ),
    ({"sends_residual": lambda place: None}, r"sends_residual returned None, .* returns True or False"),
    (
        {"plan": fails(ZeroDivisionError("no"))},
        r"plan raised ZeroDivisionError: no .*; plan\(bucket, device\) returns an",
    ),
    (
        {"plan": lambda bucket, device: [3]},
        r"plan returned \[3\], which has no run, .*a method run\(gradient, step\)",
    ),
    ({"run": fails(ValueError("shape"))}, r"run raised ValueError: shape"),
    (
        {"run": keeps_a_wrong_shape},
        r"run raised RuntimeError: .*size of tensor.*; run\(gradient, step\) is a generator",
    ),
    ({"run": returns(-1, yields=False)}, "run returned -1 at once: it has no yield"),
    (
        {"run": returns(None)},
        "run returned None, when it was tried on a bucket like the model's; run.gradient, step. is",
    ),
    ({"run": returns(torch.zeros(4, 5))}, r"run returned a tensor \[4, 5\] of torch.float32"),
    ({"run": returns(0)}, "run returned 0, and the gradient was finite on all ranks"),
    ({"name": 3}, "its name is 3"),
]


def tries(rank, world_size):
    """Each wrong one is refused on all ranks, and the next can be tried; a right one trains."""
    model = DistributedDataParallel(Net())
    group = groups.new_group("gradients", backend="gloo", timeout_s=30)
    for wrong, message in WRONG:
        with pytest.raises(InputError, match=r"compressor .* \(\S*test_attach:Own\): " + message):
            compression.attach(model, Own(**wrong), group)
    right = Own()
    hook = compression.attach(model, right, group)
    assert right.wire.world_size == world_size
    assert not hook.memory.flats
    model(batch(0, rank)).square().mean().backward()
    hook.close()


def test_a_compressor_of_ones_own_is_tried_before_the_first_step():
    run_world(2, tries, timeout_s=60)


def warns(rank, world_size):
    """The lines of each pair that goes together at a cost."""
    said = []
    logging.getLogger("eagleray.compression").warning = lambda text, *more: said.append(text % more)
    for kind, make in (("topk", torch.optim.AdamW), ("randomk", torch.optim.Adam), ("topk", torch.optim.SGD)):
        for _ in range(2):
            model = DistributedDataParallel(Net())
            compression.attach(model, kind, optimizer=make(model.parameters(), lr=0.1)).close()
    return said


def test_what_costs_accuracy_is_said_once():
    (said,) = run_world(1, warns)
    assert [text.partition(" divides")[0] for text in said] == [
        "compression: topk is made for SGD: AdamW",
        "compression: randomk is made for SGD: Adam",
    ]


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
    wide = DistributedDataParallel(Net(torch.float64))
    cases = [
        (Net(), "none", None, InputError, "takes a DistributedDataParallel model, not Net"),
        (model, None, None, InputError, "compression is None; give the name of a kind"),
        (model, 5, None, InputError, "compression is 5"),
        (model, TopK, None, InputError, "compression is <class"),
        (model, {"kind": "powersgd", "rank": 0}, None, SpecError, "compression: rank"),
        (model, {"kind": "int8", "momentum_correction": True}, None, SpecError, "only topk uses it"),
        (model, Own(sends_residual=None), None, InputError, r"the compressor <.*Own.* has no sends_residual"),
        (model, {"kind": "int8", "blocks": 3}, None, SpecError, "compression: blocks"),
        (model, corrected, momentum, InputError, "SGD has one of 0.9"),
        (model, TopK(momentum=0.9), adam, InputError, "Adam has one of 0.9"),
        (model, {"kind": "int8", "keep_dense": ["no"]}, None, InputError, "trains no no"),
        (DistributedDataParallel(Complex()), "int8", None, InputError, "w is torch.complex64"),
        (wide, "bf16", None, InputError, "first.weight is torch.float64, and compression bf16 would round"),
        (wide, Own(), None, InputError, "first.weight is torch.float64, and compression own would round"),
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
    with pytest.raises(
        InputError, match=r"hook already: compression.attach was called for it before \(topk\)"
    ):
        compression.attach(model, "none")
    hook.close()
    with pytest.raises(InputError, match=r"wrap the module anew: DistributedDataParallel\(model.module\)"):
        compression.attach(model, "none")
    other = DistributedDataParallel(Net())
    other.register_comm_hook(None, default_hooks.allreduce_hook)
    with pytest.raises(InputError, match="hook already: DDP takes one only; leave register_comm_hook out"):
        compression.attach(other, "none")
    assert len(making._open_groups) == open_before
    hook = compression.attach(wide, {"kind": "auto", "fidelity": "low"})
    assert hook.compressor.candidates() == ("none",), "nothing else is exact"
    hook.close()
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


def swaps_as_over_nccl(rank, world_size):
    """Ranks 1 and 2, which are 0 and 1 of their group, swap in one launch; gloo takes such, too."""
    members = [0] if rank == 0 else [1, 2]
    wire = Wire(groups.new_group("some", backend="gloo", timeout_s=30, ranks=members))
    wire.is_nccl = True
    if rank == 0:
        return
    other = 1 - wire.rank
    outgoing, incoming = ([None, wire.message(1)] if other else [wire.message(1), None] for _ in range(2))
    outgoing[other].body.fill_(rank)
    wire.swap(Step(1, 0), 0, outgoing, incoming).wait()
    assert int(incoming[other].body) == 3 - rank


def test_over_nccl_peers_are_ranks_of_the_group_too():
    run_world(3, swaps_as_over_nccl, timeout_s=60)


def with_nothing_in_it(rank, world_size):
    """A parameter of no elements beside one that is compressed."""
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 0, bias=False))
    corrected = CompressionSpec(kind="topk", dense_below=0, momentum_correction=True)
    kinds = ("none", "int8", "int8_ring", "topk", "randomk", "powersgd", "auto")
    for spec in (corrected, *(CompressionSpec(kind=kind, dense_below=0) for kind in kinds)):
        model = DistributedDataParallel(net)
        hook = compression.attach(model, spec)
        assert hook._engine.layout.places["1.weight"].is_dense
        for _ in range(2):
            (model.module[0](torch.ones(1, 8)).sum() + model(torch.ones(1, 8)).sum()).backward()
        hook.close()


def test_an_empty_parameter_travels_with_the_others():
    run_world(2, with_nothing_in_it, timeout_s=60)
