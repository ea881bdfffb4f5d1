"""The engine's stream and event rules on one CUDA device."""

import pytest
import torch
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.compression.engine import Engine
from eagleray.compression.jobs import Job
from eagleray.compression.layout import Bucket, Layout
from eagleray.compression.memory import Memory
from eagleray.compression.quantised import Quantised
from eagleray.compression.wire import Step
from eagleray.errors import InputError
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


def is_refused_over_gloo(rank, world_size):
    """NCCL refuses two ranks on one device, and gloo does not send what lies there."""
    torch.cuda.set_device(0)
    group = groups.new_group("gradients", backend="gloo", timeout_s=60)
    model = DistributedDataParallel(torch.nn.Linear(64, 8).cuda())
    with pytest.raises(InputError, match="sends from the CPU only"):
        compression.attach(model, "none", group)
    groups.close(group)


def test_two_ranks_on_one_device():
    run_world(2, is_refused_over_gloo)
