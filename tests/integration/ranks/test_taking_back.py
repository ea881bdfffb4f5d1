"""A step that is not finite on one rank takes nothing along of what the ranks owe; or little, and says so."""

import math

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.specs.compression import CompressionSpec
from support.worlds import run_world

KINDS = ("int8", "int4", "int8_ring", "topk", "randomk", "powersgd", "onebit_adam")
SETTINGS = {
    "topk": {"ratio": 0.05, "warmup_steps": 0, "momentum_correction": True},
    "randomk": {"ratio": 0.05},
    "powersgd": {"rank": 2},
    "onebit_adam": {"warmup_steps": 1},
}
LAST_BUCKET = "0.weight"


class Run:
    """A small model on this rank, in a bucket for each layer or so."""

    def __init__(self, kind, group, rank):
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(40, 60),
            nn.ReLU(),
            nn.Linear(60, 60),
            nn.ReLU(),
            nn.Linear(60, 60),
            nn.ReLU(),
            nn.Linear(60, 8),
        )
        self.model = DistributedDataParallel(self.net, gradient_as_bucket_view=True, bucket_cap_mb=1e-3)
        is_pair = kind == "onebit_adam"
        make = compression.MomentumAdam if is_pair else torch.optim.SGD
        self.optimizer = make(self.net.parameters(), lr=1e-3)
        spec = CompressionSpec(kind=kind, **SETTINGS.get(kind, {}))
        self.hook = compression.attach(self.model, spec, group, optimizer=self.optimizer)
        self.generator = torch.Generator().manual_seed(rank)
        self.scale = 1.0

    def step(self, *bad):
        """One step, in which the gradients of these parameters are not finite on this rank."""
        handles = [self.net.get_parameter(name).register_hook(lambda one: one * math.nan) for name in bad]
        self.hook.set_loss_scale(self.scale)
        self.optimizer.zero_grad(set_to_none=True)
        (self.model(torch.randn(8, 40, generator=self.generator)).square().mean() * self.scale).backward()
        for handle in handles:
            handle.remove()
        if not self.hook.non_finite().in_a_row:
            for parameter in self.net.parameters():
                parameter.grad /= self.scale
            self.optimizer.step()

    def owed(self):
        """All that is kept, by slot and parameter, as bytes; the count of steps goes on."""
        memory = self.hook.memory
        found = {
            (slot, name): part.numpy().tobytes()
            for slot, (_, flat) in memory.flats.items()
            for name, part in memory.layout.flat_views(flat).items()
        }
        for slot, (_, tensors) in memory.tensors.items():
            if slot != "steps":
                found |= {(slot, name): part.numpy().tobytes() for name, part in tensors.items()}
        return found


def lose_a_step(rank, world_size):
    torch.set_num_threads(1)
    group = groups.new_group("gradients", backend="gloo", timeout_s=30)
    is_odd = rank == 1
    for kind in KINDS:
        run = Run(kind, group, rank)
        for _ in range(4):
            run.step()
        before = run.owed()
        run.step(*(name for name, _ in run.net.named_parameters() if is_odd))  # as of a loss that is NaN
        after = run.owed()
        kept = {key[1] for key in before if before[key] == after[key]}
        assert LAST_BUCKET in kept, "it was known when its bucket came"
        assert run.hook.non_finite().incomplete == 1
        for _ in range(2):
            run.step()
        before = run.owed()
        assert any(any(one) for one in before.values()), "something is owed"
        run.step(*([LAST_BUCKET] if is_odd else []))  # the others have been exchanged when it comes
        assert run.owed() == before, kind
        assert run.hook.memory.flats.keys() >= {"residual"}
        run.step()
        assert run.owed() != before
        told = run.hook.non_finite()
        assert (told.in_a_row, told.total, told.parameter, told.incomplete) == (0, 2, LAST_BUCKET, 1)
        run.hook.close()


def lose_a_scaled_step(rank, world_size):
    torch.set_num_threads(1)
    group = groups.new_group("gradients", backend="gloo", timeout_s=30)
    for kind in KINDS:
        run = Run(kind, group, rank)
        run.scale = 1024.0
        run.step(*([LAST_BUCKET] if rank == 1 else []))
        assert not any(any(one) for (slot, _), one in run.owed().items() if slot == "residual"), kind
        for _ in range(3):
            run.step()
        before = run.owed()
        run.step(*([LAST_BUCKET] if rank == 1 else []))
        assert run.owed() == before, kind
        assert run.hook.non_finite().incomplete == 0
        run.hook.close()


@pytest.mark.parametrize("world_size", [2, 3])
def test_what_is_owed_is_what_it_was_before_a_step_that_nobody_takes(world_size):
    run_world(world_size, lose_a_step)


def test_with_a_loss_scale_from_the_first_step_on():
    run_world(2, lose_a_scaled_step)


def give_the_copies_back(rank, world_size, guarded_steps):
    from eagleray.compression import guard

    guard.GUARDED_STEPS = guarded_steps
    group = groups.new_group("gradients", backend="gloo", timeout_s=30)
    run = Run("int8", group, rank)
    run.step()
    assert not run.hook.memory._copies
    run.step(*([LAST_BUCKET] if rank == 1 else []))
    run.step()
    assert run.hook.memory._copies
    for _ in range(guarded_steps):
        run.step()
    assert not run.hook.memory._copies, "an ordinary step costs nothing"
    run.hook.close()


def test_copies_are_made_for_a_while_only():
    run_world(2, give_the_copies_back, 3)
