"""Optimizers, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from eagleray.compression.optimizer import MomentumAdam
from eagleray.specs.compression import ADAM_PAIRS, CompressionSpec
from eagleray.specs.train import OptimizerSpec, ScheduleSpec


def build_optimizer(
    spec: OptimizerSpec, parameters: Iterable[nn.Parameter], *, compression: CompressionSpec | None = None
) -> torch.optim.Optimizer:
    """The optimizer over `parameters`, one group, at the spec's learning rate.

    Torch's fused kernels: one pass over memory (10 M parameters on one core: AdamW 4.6 ms instead of 45).

    For a compression that sends Adam's momentum, or may choose to, it is the Adam that understands it.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if spec.kind == "sgd":
        return torch.optim.SGD(
            trainable,
            lr=spec.lr,
            momentum=spec.momentum,
            nesterov=spec.nesterov,
            weight_decay=spec.weight_decay,
            fused=True,
        )
    if compression is not None and _may_send_momentum(compression):
        return MomentumAdam(
            trainable,
            lr=spec.lr,
            betas=spec.betas,
            eps=spec.eps,
            weight_decay=spec.weight_decay,
            decoupled_weight_decay=spec.kind == "adamw",
            fused=True,
        )
    kind = torch.optim.AdamW if spec.kind == "adamw" else torch.optim.Adam
    return kind(
        trainable,
        lr=spec.lr,
        betas=spec.betas,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        fused=True,
    )


def _may_send_momentum(compression: CompressionSpec) -> bool:
    is_free = compression.kind == "auto" and compression.fidelity in ("medium", "low")
    return is_free or compression.kind in ADAM_PAIRS


def learning_rate(lr: float, spec: ScheduleSpec, step: int, total_steps: int) -> float:
    """The learning rate of step `step` (the first is 1) of `total_steps`."""
    if step <= spec.warmup_steps:
        return lr * step / spec.warmup_steps
    after_warmup = step - spec.warmup_steps - 1
    if spec.kind == "cosine":
        span = max(1, total_steps - spec.warmup_steps - 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, after_warmup / span)))
        return lr * (spec.final_fraction + (1 - spec.final_fraction) * cosine)
    if spec.kind == "step":
        return lr * spec.gamma ** (after_warmup // spec.every_steps)
    return lr


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group of `optimizer` the learning rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
