"""What the engine says of itself."""

import torch
from torch.futures import Future

from eagleray.compression.jobs import Job, Running
from eagleray.compression.layout import Bucket, Layout
from eagleray.compression.memory import RESIDUAL, Memory
from eagleray.compression.meter import SAMPLED_EVERY, Meter
from eagleray.compression.wire import Step
from support.ranks import wires


def test_a_sampled_step_that_is_not_finite_leaves_the_relative_error_as_it_was():
    layout = Layout([("a", (8,)), ("b", (8,))], world_size=2)
    memory = Memory(layout, torch.device("cpu"))
    meter, kept = Meter(wires(2)[0], memory), memory.flat(RESIDUAL, "mean")

    def take(number, *values):
        kept.fill_(3.0)
        for index, (place, value) in enumerate(zip(layout.places.values(), values, strict=True)):
            gradient = torch.full((8,), value)
            job = Job(Bucket.packed([place]), gradient, Step(number, index), Future(), is_last=index == 1)
            running = Running(job, gradient, (_ for _ in ()))
            before = meter.read()
            meter.begin(running)
            meter.conclude(running)
            meter.add(running, before, was_begun=True, is_done=True)
        return meter.stats.relative_error

    assert take(1, 3.0, 3.0) is None
    assert take(2, 3.0, 3.0) == 0.5
    assert take(2 + SAMPLED_EVERY, torch.nan, torch.inf) == 0.5
    assert take(2 + 2 * SAMPLED_EVERY, torch.nan, 0.0) == 1.0, "of the buckets that are finite"
    assert {key: one.relative_error for key, one in meter.buckets.items()} == {("a",): 0.5, ("b",): 1.0}
