"""Small layers that several models share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class _RunningWhereAlone(nn.modules.batchnorm._BatchNorm):
    """Batch norm that takes its running statistics where a channel has one value only.

    torch raises there; a rank's share of a batch may well be one sample. The statistics then stay.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=False,
                eps=self.eps,
            )
        return super().forward(input)


class BatchNorm1d(_RunningWhereAlone, nn.BatchNorm1d):
    """Over [B, C]."""


class BatchNorm2d(_RunningWhereAlone, nn.BatchNorm2d):
    """Over [B, C, H, W]."""


def norm_of_features(kind: str, size: int) -> nn.Module:
    """`none`, `batch` or `layer`, for activations [B, size]."""
    if kind == "batch":
        return BatchNorm1d(size)
    return nn.LayerNorm(size) if kind == "layer" else nn.Identity()


def norm_of_channels(kind: str, channels: int) -> nn.Module:
    """`none`, `batch` or `layer` (over channels and space together), for activations [B, channels, H, W]."""
    if kind == "batch":
        return BatchNorm2d(channels)
    return nn.GroupNorm(1, channels) if kind == "layer" else nn.Identity()
