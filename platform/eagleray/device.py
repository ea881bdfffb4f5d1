"""The only place that picks a device, a backend for collectives, and a number format."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from eagleray.errors import SpecError

Precision = Literal["float32", "bf16", "fp16", "float64"]


@dataclass(frozen=True)
class Place:
    """Where one worker computes, and what carries its collectives."""

    device: torch.device
    backend: Literal["gloo", "nccl"]
    is_logical_gpu: bool
    """A GPU was granted by the scheduler, and the machine has none: the worker computes on the CPU."""


def pick(num_gpus: int) -> Place:
    """The place of a worker that was granted `num_gpus`; a CUDA device becomes the process's current one.

    Ray Train lets the workers of a node see each other's GPUs, so the index comes from LOCAL_RANK, which it
    sets as torchrun does; where a worker sees its own GPU only, that is index 0.
    """
    if num_gpus > 0 and torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        index = local_rank * num_gpus % torch.cuda.device_count()
        torch.cuda.set_device(index)
        return Place(torch.device("cuda", index), "nccl", is_logical_gpu=False)
    return Place(torch.device("cpu"), "gloo", is_logical_gpu=num_gpus > 0)


def dtype(precision: Precision) -> torch.dtype:
    """Of parameters, gradients and floating input: bf16 and fp16 keep them in float32 and autocast."""
    return torch.float64 if precision == "float64" else torch.float32


def autocast(place: Place, precision: Precision) -> AbstractContextManager[object]:
    """The context of a forward pass: mixed precision for bf16 and fp16, nothing for the others.

    Raises:
        SpecError: fp16 without CUDA; its gradients need a scaler and kernels that a CPU does not have.
    """
    if precision == "bf16":
        return torch.autocast(place.device.type, torch.bfloat16)
    if precision == "fp16":
        if place.device.type != "cuda":
            found = "the GPU is a logical one" if place.is_logical_gpu else "this worker has no GPU"
            raise SpecError(
                f'training.precision "fp16" needs CUDA, and {found}; use "bf16" or "float32", '
                "or ask for scaling.gpus_per_worker = 1 on a machine with a CUDA device"
            )
        return torch.autocast("cuda", torch.float16)
    return nullcontext()
