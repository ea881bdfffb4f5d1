"""Ranks that die, stop or never come: the others get out of backward with a clear error."""

import os
import re
import signal
import threading
import time

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.compression import engine
from eagleray.compression.dry import DryWire
from eagleray.errors import InputError, PeerLost, TrainingError
from eagleray.specs.compression import CompressionSpec
from integration.ranks.checks import Net, batch, spec_of
from integration.ranks.kills import training_world
from support.worlds import run_world

KILLS = pytest.mark.parametrize(
    ("world_size", "kind", "votes"), [(3, "bf16", False), (3, "none", True), (2, "none", False)]
)


def kill_the_last(world_size, kind, votes, limit_s):
    """Survivors raise within the limit, and close their hooks within as much again."""
    with training_world(world_size, kind, votes=votes) as (processes, pipes):
        pid = processes[-1].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        for rank, pipe in enumerate(pipes[:-1]):
            assert pipe.poll(50), f"rank {rank} still hangs"
            name, message, raised, closed = pipe.recv()
            print(f"rank {rank} raised after {raised - killed:.3f} s, closed in {closed - raised:.3f} s")
            assert name == "PeerLost"
            assert f"rank {rank} of {world_size}" in message
            assert votes or re.search(r"step \d+ .*bucket \d+ \(\d\.(bias|weight)", message), message
            assert raised - killed < limit_s, message
            assert closed - raised < limit_s


@KILLS
def test_survivors_of_a_kill_get_out_long_before_the_time_limit(world_size, kind, votes):
    kill_the_last(world_size, kind, votes, limit_s=20.0)


@pytest.mark.slow  # a goal for a machine that is free
@KILLS
def test_survivors_of_a_kill_get_out_within_a_second(world_size, kind, votes):
    kill_the_last(world_size, kind, votes, limit_s=1.0)


def test_a_stopped_rank_is_noticed_by_the_time_limit_and_frees_everybody():
    with training_world(3, "bf16", timeout_s=2.5) as (processes, pipes):
        pid = processes[-1].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        for rank, pipe in enumerate(pipes[:-1]):
            assert pipe.poll(50), f"rank {rank} still hangs"
            name, *_ = pipe.recv()
            assert name == "PeerLost"


def waiting_for_nobody(rank, world_size):
    """Rank 0 is in backward, rank 1 never comes; closing rank 0's hook frees it."""
    group = groups.new_group("gradients", backend="gloo", timeout_s=600)
    model = DistributedDataParallel(Net(), bucket_cap_mb=1e-3)
    hook = compression.attach(model, compression.make_compressor(CompressionSpec(kind="bf16")), group)
    if rank == 1:
        store = torch.distributed.distributed_c10d._get_default_store()
        store.wait(["freed"])
        hook.close()
        return
    caught = []

    def backward():
        try:
            model(batch(0, rank)).square().mean().backward()
        except PeerLost as error:
            caught.append(error)

    thread = threading.Thread(target=backward)
    thread.start()
    deadline = time.monotonic() + 60
    while not hook._engine._plans:  # made just before the first exchange
        assert time.monotonic() < deadline
        time.sleep(0.001)
    engine._JOIN_S = 0.2
    hook.close()
    hook.close()
    thread.join(30)
    assert not thread.is_alive()
    assert caught
    torch.distributed.distributed_c10d._get_default_store().set("freed", "yes")


def test_closing_while_a_peer_never_comes():
    run_world(2, waiting_for_nobody, timeout_s=120)


class Broken:
    """A compressor with a fault of its own, which it does not show when it is tried."""

    name, keeps_dtype, is_lossy = "broken", True, True

    def bind(self, layout, wire, memory):
        self.is_tried = isinstance(wire, DryWire)

    def sends_residual(self, place):
        return True

    def plan(self, bucket, device):
        return self

    def run(self, gradient, step):
        yield
        if self.is_tried:
            return -1
        raise ZeroDivisionError("codec")


def own_fault(rank, world_size):
    group = groups.new_group("gradients", backend="gloo", timeout_s=120)
    model = DistributedDataParallel(Net(), bucket_cap_mb=1e-3)
    hook = compression.attach(model, Broken(), group)
    with pytest.raises(
        TrainingError,
        match=rf"rank {rank} of 2.*step 1 .*bucket 0 \(.*compression broken\): ZeroDivisionError: codec",
    ) as caught:
        model(batch(0, rank)).square().mean().backward()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    hook.close()


def test_a_fault_of_our_own_is_not_blamed_on_a_peer():
    run_world(2, own_fault)


def in_another_step(rank, world_size):
    """Rank 1 has made a step that the others have not: nobody hangs, and who strays is named."""
    group = groups.new_group("gradients", backend="gloo", timeout_s=30)
    model = DistributedDataParallel(Net())
    hook = compression.attach(model, spec_of("int8"), group)
    if rank == 1:
        hook._step = 7
    theirs = "rank 1 sent step 7, bucket 0, stage 0 .int8, .*rank [02] is at step 1"
    its = "rank [02] sent step 1, bucket 0, stage 0 .int8, .*rank 1 is at step 7"
    with pytest.raises(TrainingError, match=f"{theirs}|{its}"):
        model(batch(0, rank)).square().mean().backward()
    hook.close()


def test_a_rank_in_another_step_is_named_by_all():
    run_world(3, in_another_step, timeout_s=30)


def with_another_scheme(rank, world_size, kind, other):
    """Rank 1 sends otherwise than the others from the second step on: messages of other sizes."""
    torch.set_num_threads(1)
    group = groups.new_group("gradients", backend="gloo", timeout_s=30)
    layers = [torch.nn.Linear(700, 600, bias=False), torch.nn.Linear(600, 500, bias=False)]
    model = DistributedDataParallel(torch.nn.Sequential(*layers))
    hook = compression.attach(model, spec_of(kind), group)
    model(torch.randn(4, 700)).square().mean().backward()
    if rank == 1:
        changed = compression.make_compressor(spec_of(other))

        def change(wire):
            changed.bind(hook._engine.layout, wire, hook.memory)
            wire.scheme = changed.name
            hook._engine._plans.clear()

        hook._engine.call("change", change)
        hook._engine.compressor = changed
    theirs = rf"rank 1 sent step 2, .*\({other}, .*rank [02] is at step 2, .*\({kind}, "
    its = rf"rank [02] sent step 2, .*\({kind}, .*rank 1 is at step 2, .*\({other}, "
    covered = r"rank \d sent what another scheme's longer message has covered"
    with pytest.raises(TrainingError, match=f"{theirs}|{its}|{covered}"):
        model(torch.randn(4, 700)).square().mean().backward()
    hook.close()


@pytest.mark.parametrize(
    ("kind", "other"), [("int4", "none"), ("none", "topk"), ("powersgd", "int8"), ("int8_ring", "randomk")]
)
def test_a_rank_with_another_scheme_is_named_by_all(kind, other):
    run_world(3, with_another_scheme, kind, other, timeout_s=60)


def with_another_model(rank, world_size):
    group = groups.new_group("gradients", backend="gloo", timeout_s=30)
    model = DistributedDataParallel(Net())
    kind = "int4" if rank == 2 else "int8"
    with pytest.raises(InputError, match=r"rank 2 has compression int4 and .* rank 0 has compression int8"):
        compression.attach(model, spec_of(kind), group)
    spec = spec_of("int8").model_copy(update={"block_size": 128 if rank == 1 else 256})
    with pytest.raises(InputError, match=r"rank 1 has compression int8 and .* rank 0 has compression int8"):
        compression.attach(model, spec, group)
    model.module.first.weight.requires_grad_(rank != 1)
    with pytest.raises(InputError, match=r"rank 1 has .* 800 elements .* rank 0 has .* 1808 elements"):
        compression.attach(model, spec_of("int8"), group)


def test_another_model_or_compression_is_named_when_the_hook_is_attached():
    run_world(3, with_another_model, timeout_s=30)
