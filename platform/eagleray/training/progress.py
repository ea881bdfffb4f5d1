"""Where a run is: the frozen value that a checkpoint carries, and what an evaluation does to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eagleray.specs.train import EarlyStopping


@dataclass(frozen=True)
class Progress:
    """Position of a run. `consumed` is the data cursor: samples of all steps and epochs.

    A step that was skipped, because its gradient was not finite, counts with its samples.
    """

    step: int = 0
    consumed: int = 0
    epoch: int = 0
    best: float | None = None
    """Best value of the early-stopping metric so far."""
    stale_evaluations: int = 0
    """Evaluations since then."""
    is_stopped_early: bool = False

    def to_json(self) -> dict[str, Any]:
        """The fields, for a checkpoint's state."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Progress:
        """The value that `to_json` wrote."""
        return cls(**fields)

    def advanced(self, consumed: int, epoch: int) -> Progress:
        """One step further."""
        return dataclasses.replace(self, step=self.step + 1, consumed=consumed, epoch=epoch)

    def judged(self, rule: EarlyStopping | None, metrics: Mapping[str, float]) -> Progress:
        """After an evaluation: better, or stale once more, or stopped."""
        if rule is None or rule.metric not in metrics:
            return self
        value = metrics[rule.metric]
        sign = 1 if rule.metric.endswith("loss") else -1
        if self.best is None or sign * (self.best - value) > rule.min_delta:
            return dataclasses.replace(self, best=value, stale_evaluations=0)
        stale = self.stale_evaluations + 1
        return dataclasses.replace(self, stale_evaluations=stale, is_stopped_early=stale >= rule.patience)
