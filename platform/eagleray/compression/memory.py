"""What compressors keep from step to step, keyed by the parameter's name.

Two rules of what becomes of it in a checkpoint and in a resize:
- mean: each rank has its own; only the ranks' mean acts on the model (EF-SGD's virtual iterate), so the mean
  is saved, and whoever loads it starts from it. Residuals and local momentum.
- same: all ranks hold the same bits; rank 0's are saved. PowerSGD's factors, an averaged momentum.

A step that nobody takes should leave no trace here. But a compressor has put the gradient into the
residual, and the mean over the gradient, before it is known that another bucket of the step is not finite on
some rank: from what is left then, neither the gradient nor the residual of before can be computed, only their
sum. So who may have to take a step back copies first (`keep`); the engine says when that is worth its while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from eagleray.compression.layout import Layout, Place

Rule = Literal["mean", "same"]
RESIDUAL = "residual"
"""The slot that all compressors share; others are kept only by the compressor that made them."""
COUNT = "steps"
"""Slot of the number of steps (`steps.py`): one that is taken back counts all the same."""


class Memory:
    """The slots of one model on one rank. A compressor asks for what it needs; who comes later finds it.

    All compressors that feed errors back use the slot "residual", in the gradient's own unit (not times a
    loss scale), so that a change of compressor loses nothing.
    """

    def __init__(self, layout: Layout, device: torch.device):
        self.layout, self.device = layout, device
        self.flats: dict[str, tuple[Rule, Tensor]] = {}
        self.tensors: dict[str, tuple[Rule, dict[str, Tensor]]] = {}
        self._copies: dict[str, Tensor] = {}
        """By slot of `flats`: what `keep` has copied, float32 [M]."""
        self._kept: dict[str, tuple[Place, set[str], dict[str, Tensor]]] = {}
        """By parameter: its place, the slots of `flats` and its tensors by slot, as they were."""
        self.owed: set[str] = set()
        """Parameters whose residual no plan sends: whoever begins a bucket repays it."""
        self._repaid: set[str] = set()
        """In this step."""

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

    def owe(self, is_sent: Callable[[Place], bool]) -> None:
        """Another compressor takes over, which sends the residual of these: note whose are to be repaid."""
        has_any = RESIDUAL in self.flats
        self.owed = {name for name, place in self.layout.places.items() if has_any and not is_sent(place)}

    def repay(self, parts: Iterable[tuple[Place, int]], gradient: Tensor, loss_scale: float) -> None:
        """Add to the gradient what nothing else would send of these parameters, and forget it.

        As everywhere a parameter without a gradient keeps its own, and so does one that is not finite.

        Args:
            parts: parameters, and where they start in the gradient.
            gradient: times `loss_scale`; holds the sum afterwards.
            loss_scale: residuals are kept without it.
        """
        owing = [(place, start) for place, start in parts if place.name in self.owed]
        self.keep(place for place, _ in owing)  # it may be sent in vain
        for place, start in owing:
            part, kept = gradient[start : start + place.numel], _part(self.flats[RESIDUAL][1], place)
            if not kept.any():
                self.owed.discard(place.name)
            elif part.any() and part.isfinite().all():
                part.add_(kept.to(part.dtype), alpha=loss_scale)
                kept.zero_()
                self.owed.discard(place.name)
                self._repaid.add(place.name)

    def keep(self, places: Iterable[Place]) -> None:
        """Copy what is kept of these parameters, for `take_back`; but what this step has copied already."""
        for place in places:
            if place.name in self._kept:
                continue
            for slot, (_, flat) in self.flats.items():
                if slot not in self._copies:
                    self._copies[slot] = torch.empty_like(flat)
                _part(self._copies[slot], place).copy_(_part(flat, place))
            tensors = {
                slot: named[place.name].clone()
                for slot, (_, named) in self.tensors.items()
                if place.name in named and slot != COUNT
            }
            self._kept[place.name] = (place, set(self.flats), tensors)

    def has_kept(self, places: Iterable[Place]) -> bool:
        """Whether `take_back` would bring all of it back; also where there is nothing."""
        return not self.flats or all(place.name in self._kept for place in places)

    def take_back(self, *, has_all: bool = True) -> None:
        """Make what was copied in this step what it was then; what has come since is zero, or gone.

        Args:
            has_all: all of it was copied, on all ranks. Else slots of rule "same" stay: all ranks have
                changed them alike, but not all have copied the same parameters.
        """
        for name, (place, slots, before) in self._kept.items():
            for slot, (rule, flat) in self.flats.items():
                if rule == "same" and not has_all:
                    continue
                if slot in slots:
                    _part(flat, place).copy_(_part(self._copies[slot], place))
                else:
                    _part(flat, place).zero_()
            for slot, (rule, named) in self.tensors.items():
                if rule == "same" and not has_all:
                    continue
                if slot in before and name in named and named[name].shape == before[slot].shape:
                    named[name].copy_(before[slot])
                elif slot in before:
                    named[name] = before[slot]
                elif slot != COUNT:
                    named.pop(name, None)
        self.tensors = {slot: one for slot, one in self.tensors.items() if one[1]}
        self._kept.clear()
        self.owed |= self._repaid
        self._repaid.clear()

    def let_go(self, *, free: bool) -> None:
        """The step was taken: forget the copies; and give their memory back where `free`."""
        self._kept.clear()
        self._repaid.clear()
        if free:
            self._copies.clear()


def _part(flat: Tensor, place: Place) -> Tensor:
    return flat[place.start : place.start + place.numel]
