"""The optimizer's step, or none: a gradient that is not finite on some rank makes all of them skip it.

The gradient is the ranks' mean, the same on all of them to the last bit, so each finds by itself, and at the
same step, that it is not finite. What compression keeps has taken nothing of it.
"""

from __future__ import annotations

import torch
from torch import nn

from eagleray.errors import TrainingError
from eagleray.training.parts import Parts


def take_step(parts: Parts, step: int, skipped: int) -> int:
    """Clip the gradient's norm if asked and update the parameters; or skip the step.

    With a gradient scaler (fp16) steps are skipped until its scale fits; only one that has fallen below 1
    shows that the loss itself is at fault.

    Args:
        parts: the module, optimizer and scaler are changed; gradients stay.
        step: number of the step, for messages.
        skipped: how many steps in a row were skipped before this one.

    Returns the same with this one, 0 where it was taken.

    Raises: TrainingError: `compression.max_skipped_steps` in a row had to be skipped; names the parameter.
    """
    parts.scaler.unscale_(parts.optimizer)
    gradients = [p.grad for p in parts.module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if torch.isfinite(norm):
        clip_norm = parts.spec.training.clip_norm
        if clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parts.module.parameters(), clip_norm, norm)
        parts.scaler.step(parts.optimizer)
        skipped = 0
    else:
        skipped += 1
        if skipped >= _limit(parts):
            raise TrainingError(not_finite(parts, step, skipped))
    parts.scaler.update()
    return skipped


def _limit(parts: Parts) -> float:
    """How many steps in a row may not be finite before the run ends."""
    if parts.scaler.is_enabled():
        return 1 if parts.scaler.get_scale() < 1 else float("inf")
    return parts.spec.compression.max_skipped_steps


def not_finite(parts: Parts, step: int, skipped: int) -> str:
    """The sentence for the last of so many gradients that are not finite: where, and what to try."""
    row = f", as in the {skipped - 1} steps before" if skipped > 1 else ""
    advice = f"lower optimizer.lr ({parts.spec.optimizer.lr:g}), set training.clip_norm, or look at the data"
    choice = parts.hook.choice()
    if (choice.kind if choice else parts.hook.compressor.name) == "fp16":
        advice = f"compression fp16 ends at 65504: take bf16, which does not; if that does not help, {advice}"
    return f"step {step}: the gradient of {bad_parameter(parts)} is not finite on some rank{row}; {advice}"


def skip_note(parts: Parts, step: int, skipped: int) -> str:
    """The sentence for a step that all ranks skip."""
    return (
        f"step {step}: the gradient of {bad_parameter(parts)} is not finite on some rank; all skip the step "
        f"({skipped} in a row, the run ends at {parts.spec.compression.max_skipped_steps})"
    )


def bad_parameter(parts: Parts) -> str:
    """The first parameter whose gradient is not finite."""
    named = ((name, parameter.grad) for name, parameter in parts.module.named_parameters())
    return next(
        (name for name, gradient in named if gradient is not None and not torch.isfinite(gradient).all()),
        "(the norm overflowed)",
    )


class Buffers:
    """The module's buffers as they were before a step.

    The forward pass of a step that is skipped has left what is not finite in them too: BatchNorm's running
    statistics would never be finite again.
    """

    def __init__(self, module: nn.Module):
        saved = module.state_dict(keep_vars=True)
        self._live = [buffer for name, buffer in module.named_buffers() if name in saved and buffer.numel()]
        self._kept = [buffer.detach().clone() for buffer in self._live]

    def keep(self) -> None:
        """Remember them as they are."""
        if self._live:
            torch._foreach_copy_(self._kept, self._live)

    def restore(self) -> None:
        """Make them what they were at the last `keep`."""
        if self._live:
            torch._foreach_copy_(self._live, self._kept)
