"""What compressors keep from step to step, keyed by the parameter's name.

Two rules of what becomes of it in a checkpoint and in a resize:
- mean: each rank has its own; only the ranks' mean acts on the model (EF-SGD's virtual iterate), so the mean
  is saved, and whoever loads it starts from it. Residuals and local momentum.
- same: all ranks hold the same bits; rank 0's are saved. PowerSGD's factors, an averaged momentum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from eagleray.compression.layout import Layout

Rule = Literal["mean", "same"]


class Memory:
    """The slots of one model on one rank. A compressor asks for what it needs; who comes later finds it.

    All compressors that feed errors back use the slot "residual", in the gradient's own unit (not times a
    loss scale), so that a change of compressor loses nothing.
    """

    def __init__(self, layout: Layout, device: torch.device):
        self.layout, self.device = layout, device
        self.flats: dict[str, tuple[Rule, Tensor]] = {}
        self.tensors: dict[str, tuple[Rule, dict[str, Tensor]]] = {}

    def flat(self, slot: str, rule: Rule) -> Tensor:
        """The slot's tensor over the whole flat space, float32 [M]; zeros the first time."""
        if slot not in self.flats:
            self.flats[slot] = (rule, torch.zeros(self.layout.numel, device=self.device))
        return self.flats[slot][1]

    def tensor(self, slot: str, name: str, rule: Rule, shape: Sequence[int]) -> tuple[Tensor, bool]:
        """A parameter's tensor of another shape than its own, float32; and whether it is new (zeros)."""
        tensors = self.tensors.setdefault(slot, (rule, {}))[1]
        is_new = name not in tensors or tensors[name].shape != torch.Size(shape)
        if is_new:
            tensors[name] = torch.zeros(*shape, device=self.device)
        return tensors[name], is_new

    def drop(self, slot: str) -> None:
        """Forget a slot."""
        self.flats.pop(slot, None)
        self.tensors.pop(slot, None)
