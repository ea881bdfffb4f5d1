"""What the engine works on: a bucket of one step, from when DDP hands it over until its future is done."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.futures import Future

from eagleray.compression.layout import Bucket
from eagleray.compression.wire import Step
from eagleray.errors import EaglerayError


@dataclass
class Job:
    """One bucket of one step."""

    bucket: Bucket
    gradient: Tensor
    """[N]; holds the mean over the ranks when the future is done."""
    step: Step
    future: Future[Tensor]
    ready: torch.Event | None = None
    """On CUDA: when the gradient is there."""
    is_last: bool = True
    """Of its step."""
    failure: EaglerayError | None = None


@dataclass
class Running:
    """A bucket whose exchange has begun."""

    job: Job
    work: Tensor
    """The gradient, or a float32 copy of it."""
    generator: Generator[None, None, int]
    signal: Tensor | None = None
    """Where this step is sampled: the squared norm of what is to be sent."""
    error: float | None = None
    """The relative error, where it is sampled and over."""
    has_begun: bool = False
