"""Loss and accuracy of the model on one part of the dataset, over all ranks."""

from __future__ import annotations

import torch
from torch import nn

from eagleray import data, device, groups, models
from eagleray.errors import PeerLost
from eagleray.training.parts import Parts, has_local_buffers

BATCH_SIZE = 256


@torch.no_grad()
def evaluate(parts: Parts, part: data.Part) -> dict[str, float]:
    """`loss`, and `accuracy` where targets are classes or tokens; every sample counted once.

    All ranks must call it at the same step; each takes its share. Leaves the module in training mode.

    Raises: PeerLost: another rank was lost meanwhile.
    """
    if has_local_buffers(parts):
        parts.agreement.average_buffers(parts.module)
    loader = data.Loader(part, global_batch_size=BATCH_SIZE, seed=0, transform=_fixed_masks(parts))
    sums = {"loss": 0.0, "correct": 0.0, "counted": 0.0, "samples": 0.0}
    parts.module.eval()
    try:
        for shard in loader.once(parts.rank, parts.world_size, BATCH_SIZE):
            if groups.are_broken():  # it may be long until the ranks meet, and the others wait
                raise PeerLost(
                    f"rank {parts.rank} of {parts.world_size}: another was lost during an evaluation"
                )
            _add(sums, parts, shard)
    finally:
        parts.module.train()
    totals = parts.agreement.sum(sums)
    metrics = {"loss": totals["loss"] / totals["samples"]}
    if totals["counted"] > 0:
        metrics["accuracy"] = totals["correct"] / totals["counted"]
    return metrics


def _add(sums: dict[str, float], parts: Parts, shard: data.Shard) -> None:
    """Add one shard's loss and hits to `sums`."""
    precision = parts.spec.training.precision
    inputs = torch.from_numpy(shard.inputs).to(parts.place.device)
    if inputs.is_floating_point():
        inputs = inputs.to(device.dtype(precision))
    targets = torch.from_numpy(shard.targets).to(parts.place.device)
    weights = torch.from_numpy(shard.weights).to(parts.place.device)
    with device.autocast(parts.place, precision):
        outputs = parts.module(inputs)
    sums["loss"] += float((parts.per_sample_loss(outputs, targets).double() * weights).sum())
    sums["samples"] += float(weights.sum())
    if parts.dataset.signature.target_kind != "value":
        correct, counted = models.num_correct(outputs, targets)
        sums["correct"] += float((correct * weights).sum())
        sums["counted"] += float((counted * weights).sum())


def _fixed_masks(parts: Parts) -> data.Transform | None:
    """Masked-token models are judged on masks too (always the same ones); nothing is augmented."""
    if parts.spec.loss.kind == "masked_token":
        return data.Masking.of(parts.spec.loss.mask_fraction, parts.dataset.signature)
    return None


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
