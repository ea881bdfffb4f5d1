"""onebit_adam and fourbit_adam: after a while Adam's momentum travels, in one bit or four, not the gradient.

Adam divides by the root of the variance, so that noise in a gradient that is nearly zero matters as much as
the gradient; the momentum is an average of many, and few bits suffice for it. For that the variance must not
change: each parameter has `warmup_steps` uncompressed steps of plain Adam, in which it settles. Then each
rank sends m_i = beta1 m + (1 - beta1) g_i, with the momentum m that all ranks share, and the mean of what was
sent is the new m.

m is the optimizer's own (`MomentumAdam`, which must be the model's optimizer), in the optimizer's state:
there is one of it, and a step that is left out leaves it as it was. Parameters that always travel
uncompressed are taken by plain Adam for ever.

What is lost goes to the residual that all compressors share. An error e of the momentum counts for
e / (1 - beta1) of the gradient, as it stays in m and fades: e (1 + beta1 + beta1^2 + ...). The residual is in
the gradient's unit, as if the momentum were a gradient at (1 - beta1) times the loss scale, so that another
compressor may take over.

A parameter without a gradient on this rank sends beta1 m: nothing, if it never had one.

Source: 1-bit Adam (arXiv 2102.02888); there it runs in the optimizer, after backward; here bucket by bucket
during it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from typing import cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from eagleray.compression.layout import Bucket, Layout, Place
from eagleray.compression.memory import Memory
from eagleray.compression.optimizer import MomentumAdam
from eagleray.compression.quantised import PairPlan, Quantised, ScatteredPlan
from eagleray.compression.wire import Step, Wire
from eagleray.errors import InputError

WARMUP_STEPS = 100


class Momentum:
    """A compressor that sends Adam's momentum."""

    keeps_dtype = False
    is_lossy = True
    pairs_with = MomentumAdam

    def __init__(self, name: str, codec: str, block: int | None = None, warmup_steps: int | None = None):
        """Take the settings.

        Args:
            name: the kind's.
            codec: "sign" or "int4".
            block: elements of a block; None: the codec's default.
            warmup_steps: uncompressed steps of each parameter, at least 1; None: WARMUP_STEPS.
        """
        self.name = name
        self.warmup_steps = max(1, WARMUP_STEPS if warmup_steps is None else warmup_steps)
        self.quantised = Quantised(codec, block)
        self._optimizer: MomentumAdam | None = None
        self.parameters: Mapping[str, Tensor] = {}

    def pair(self, optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> None:
        """See `optimizer.Paired`."""
        self._optimizer, self.parameters = cast(MomentumAdam, optimizer), parameters
        self.beta1()

    @property
    def optimizer(self) -> MomentumAdam:
        """The partner. Raises: InputError: there is none."""
        if self._optimizer is None:
            raise InputError(
                f"compression {self.name} needs its optimizer; give compression.attach(..., optimizer=...) a "
                f"{self.pairs_with.__name__}"
            )
        return self._optimizer

    def beta1(self) -> float:
        """The momentum's weight at the moment. Raises: InputError: groups differ."""
        found = {float(group["betas"][0]) for group in self.optimizer.param_groups}
        if len(found) > 1:
            raise InputError(
                f"compression {self.name} needs one beta1 for all parameter groups, not "
                f"{', '.join(map(str, sorted(found)))}; the other settings of groups may differ"
            )
        return found.pop()

    def bind(self, layout: Layout, wire: Wire, memory: Memory) -> None:
        """See `Compressor`."""
        self.quantised.bind(layout, wire, memory)

    def sends_residual(self, place: Place) -> bool:
        """See `Compressor`."""
        return not place.is_dense

    def plan(self, bucket: Bucket, device: torch.device) -> MomentumPlan:
        """See `Compressor`."""
        return MomentumPlan(self, bucket, device)

    def sends_momentum(self, place: Place) -> bool:
        """Whether the parameter's variance has settled; the same on all ranks, as their steps are."""
        optimizer, parameter = self.optimizer, self.parameters[place.name]
        return not place.is_dense and (
            optimizer.is_frozen(parameter) or optimizer.num_steps(parameter) >= self.warmup_steps
        )


class MomentumPlan:
    """One bucket: see `Plan`."""

    def __init__(self, compressor: Momentum, bucket: Bucket, device: torch.device):
        self._compressor, self._bucket, self._device = compressor, bucket, device
        self._inner: tuple[list[bool], ScatteredPlan | PairPlan] | None = None

    def run(self, gradient: Tensor, step: Step) -> Generator[None, None, int]:
        """See `Plan`; where a variance has settled the gradient is the momentum's mean afterwards."""
        compressor, optimizer = self._compressor, self._compressor.optimizer
        beta1 = compressor.beta1()
        settled = [compressor.sends_momentum(place) for place in self._bucket.places]
        for place, start, is_settled in zip(self._bucket.places, self._bucket.starts, settled, strict=True):
            parameter = compressor.parameters[place.name]
            optimizer.expect(parameter, momentum=is_settled)
            if is_settled:
                part = gradient[start : start + place.numel]
                part.mul_(1 - beta1).add_(optimizer.momentum(parameter), alpha=beta1 * step.loss_scale)
        plan = self._plan(settled)
        return (
            yield from plan.run(gradient, dataclasses.replace(step, loss_scale=step.loss_scale * (1 - beta1)))
        )

    def _plan(self, settled: list[bool]) -> ScatteredPlan | PairPlan:
        """The exchange in which the others travel uncompressed."""
        if self._inner is None or self._inner[0] != settled:
            places = [
                dataclasses.replace(place, is_dense=not is_settled)
                for place, is_settled in zip(self._bucket.places, settled, strict=True)
            ]
            bucket = dataclasses.replace(self._bucket, places=tuple(places))
            self._inner = settled, self._compressor.quantised.plan(bucket, self._device)
        return self._inner[1]
