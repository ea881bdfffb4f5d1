"""Losses and hits of each sample by itself, so that the caller weighs samples alike on every rank."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from eagleray.errors import SpecError
from eagleray.specs import IGNORED_TARGET
from eagleray.specs.train import CrossEntropyLoss, LossSpec, MseLoss

PerSampleLoss = Callable[[Tensor, Tensor], Tensor]


def per_sample_loss(spec: LossSpec) -> PerSampleLoss:
    """The function (outputs, targets) -> loss [B] of each sample, in float32 at least.

    Class: outputs [B, C], targets [B]. Value: [B, V] both; the mean over V. Token: outputs
    [B, T, vocabulary], targets [B, T]; the mean over the tokens that count, and 0 with a gradient of 0 where
    none does.
    """
    if isinstance(spec, CrossEntropyLoss):
        return partial(class_loss, label_smoothing=spec.label_smoothing)
    return value_loss if isinstance(spec, MseLoss) else token_loss


def class_loss(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy [B] of logits [B, C] and class indices [B]."""
    _check_shapes("cross_entropy", outputs, targets, outputs.dim() == 2 and targets.dim() == 1)
    return F.cross_entropy(_widened(outputs), targets, reduction="none", label_smoothing=label_smoothing)


def value_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error [B] of [B, ...] and as many target values."""
    _check_shapes(
        "mse", outputs, targets, outputs.numel() == targets.numel() and len(outputs) == len(targets)
    )
    return (_widened(outputs).flatten(1) - targets.reshape(len(targets), -1)).square().mean(dim=1)


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy [B] of logits [B, T, vocabulary] over the target tokens [B, T] not ignored."""
    _check_shapes("token", outputs, targets, outputs.dim() == 3 and outputs.shape[:2] == targets.shape)
    losses_N = F.cross_entropy(
        _widened(outputs).flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED_TARGET
    )
    losses_BT = losses_N.view(targets.shape)
    counted = (targets != IGNORED_TARGET).sum(dim=1)
    return losses_BT.sum(dim=1) / counted.clamp(min=1)


@torch.no_grad()
def num_correct(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """How many class or token targets of each sample are hit, and how many count: both [B] int64.

    A class target counts once; a token counts unless it is ignored.
    """
    is_counted = targets != IGNORED_TARGET
    is_hit = (outputs.argmax(dim=-1) == targets) & is_counted
    batch = len(targets)
    return is_hit.reshape(batch, -1).sum(dim=1), is_counted.reshape(batch, -1).sum(dim=1)


def _widened(outputs: Tensor) -> Tensor:
    """Half-precision outputs in float32; others as they are."""
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs


def _check_shapes(kind: str, outputs: Tensor, targets: Tensor, is_fitting: bool) -> None:
    """Raises: SpecError if a model of the user's own gives outputs of another shape than the loss takes."""
    if not is_fitting:
        raise SpecError(
            f"the {kind} loss cannot compare outputs of shape {tuple(outputs.shape)} "
            f"with targets of shape {tuple(targets.shape)}; choose another loss.kind, or another model"
        )
