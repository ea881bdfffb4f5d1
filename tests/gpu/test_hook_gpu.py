"""The engine's stream and event rules on one CUDA device."""

import pytest
import torch
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.compression.engine import Engine, Job
from eagleray.compression.layout import Bucket, Layout
from eagleray.compression.memory import Memory
from eagleray.compression.quantised import Quantised
from eagleray.compression.wire import Step
from support.worlds import run_world

pytestmark = pytest.mark.gpu

NUM_ELEMENTS = 1 << 24


def waits_for_the_gradient_and_is_waited_for(rank, world_size):
    """One rank over NCCL: no peers, yet the whole way of a bucket through the engine's own stream."""
    torch.cuda.set_device(0)
    group = groups.new_group("gradients", backend="nccl", timeout_s=60)
    layout = Layout([("weight", (NUM_ELEMENTS // 1024, 1024))], world_size=1)
    engine = Engine(Quantised("bf16"), group, layout, Memory(layout, torch.device("cuda")))
    bucket = Bucket((layout.places["weight"],), (0,))
    for step in range(5):
        gradient = torch.zeros(NUM_ELEMENTS, device="cuda")
        torch.cuda._sleep(20_000_000)  # the gradient is written long after the job was submitted
        gradient.fill_(1 + 2.0**-20 + step)
        future: Future[torch.Tensor] = Future(devices=[gradient.device])
        ready = torch.cuda.current_stream().record_event()
        job = Job(bucket, gradient, Step(step, 0), future, ready)
        engine.submit(job)
        result = future.wait()  # makes the current stream wait for the engine's, not the host
        copy = result.clone()
        assert job.failure is None
        assert (copy == 1 + step).all(), step
    engine.close()
    groups.close(group)


def test_engine_on_its_own_stream():
    run_world(1, waits_for_the_gradient_and_is_waited_for)


def gives_the_mean(rank, world_size):
    """Two ranks on one device, which NCCL refuses: gloo sums CUDA tensors, so `none` can be tested."""
    torch.cuda.set_device(0)
    group = groups.new_group("gradients", backend="gloo", timeout_s=60)
    for bucket_cap_mb in (25, 1e-3):
        net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8)).cuda()
        model = DistributedDataParallel(net, bucket_cap_mb=bucket_cap_mb)
        hook = compression.attach(model, "none", group)
        plain = DistributedDataParallel(net)
        for step in range(3):
            x = torch.randn(
                16, 64, device="cuda", generator=torch.Generator("cuda").manual_seed(step * 2 + rank)
            )
            found, wanted = [], []
            for one, gradients in ((model, found), (plain, wanted)):
                net.zero_grad()
                one(x).square().mean().backward()
                gradients += [p.grad.clone() for p in net.parameters() if p.grad is not None]
            torch.testing.assert_close(found, wanted)
        hook.close()


def test_two_ranks_on_one_device():
    run_world(2, gives_the_mean)
