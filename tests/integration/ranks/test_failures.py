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
from eagleray.errors import PeerLost, TrainingError
from eagleray.specs.train import CompressionSpec
from integration.ranks.checks import Net, batch
from integration.ranks.kills import training_world
from support.worlds import run_world


@pytest.mark.parametrize(
    ("world_size", "kind", "votes"), [(3, "bf16", False), (3, "none", True), (2, "none", False)]
)
def test_survivors_of_a_kill_get_out_within_a_second(world_size, kind, votes):
    with training_world(world_size, kind, votes=votes) as (processes, pipes):
        pid = processes[-1].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        for rank, pipe in enumerate(pipes[:-1]):
            assert pipe.poll(10), f"rank {rank} still hangs"
            name, message, raised, closed = pipe.recv()
            assert name == "PeerLost"
            assert f"rank {rank} of {world_size}" in message
            assert votes or re.search(r"step \d+ .*bucket \d+ \(\d\.(bias|weight)", message), message
            assert raised - killed < 1.0, message
            assert closed - raised < 1.0


def test_a_stopped_rank_is_noticed_by_the_time_limit_and_frees_everybody():
    with training_world(3, "bf16", timeout_s=1.5) as (processes, pipes):
        pid = processes[-1].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        for pipe in pipes[:-1]:
            assert pipe.poll(10)
            name, _, raised, _ = pipe.recv()
            assert name == "PeerLost"
            assert raised - stopped < 5


def waiting_for_nobody(rank, world_size):
    """Rank 0 is in backward, rank 1 never comes; closing rank 0's hook frees it."""
    group = groups.new_group("gradients", backend="gloo", timeout_s=60)
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
    deadline = time.monotonic() + 20
    while not hook._engine._plans:  # made just before the first exchange
        assert time.monotonic() < deadline
        time.sleep(0.001)
    engine._JOIN_S = 0.2
    started = time.monotonic()
    hook.close()
    hook.close()
    thread.join(5)
    assert not thread.is_alive()
    assert caught
    assert time.monotonic() - started < 2
    torch.distributed.distributed_c10d._get_default_store().set("freed", "yes")


def test_closing_while_a_peer_never_comes():
    run_world(2, waiting_for_nobody, timeout_s=30)


class Broken:
    """A compressor with a fault of its own."""

    name, keeps_dtype, is_lossy = "broken", True, True

    def bind(self, layout, wire, memory):
        pass

    def plan(self, bucket, device):
        return self

    def run(self, gradient, step):
        yield
        raise ZeroDivisionError("codec")


def own_fault(rank, world_size):
    group = groups.new_group("gradients", backend="gloo", timeout_s=30)
    model = DistributedDataParallel(Net(), bucket_cap_mb=1e-3)
    hook = compression.attach(model, Broken(), group)
    with pytest.raises(TrainingError, match=rf"rank {rank} of 2.*step 1 .*bucket 0 \(.*codec") as caught:
        model(batch(0, rank)).square().mean().backward()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    hook.close()


def test_a_fault_of_our_own_is_not_blamed_on_a_peer():
    run_world(2, own_fault)
