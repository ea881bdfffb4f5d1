"""How a search chooses what to try, and what to end early."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from eagleray.specs.base import Spec


class GridSearcher(Spec):
    """Every combination, each once; the axes are choices, grids or whole numbers."""

    kind: Literal["grid"]


class RandomSearcher(Spec):
    """Each trial drawn by itself, from the seed and its number."""

    kind: Literal["random"]


class TpeSearcher(Spec):
    """Optuna's tree-structured Parzen estimator: draws near what did well."""

    kind: Literal["tpe"]
    num_random: int | None = Field(default=None, ge=1)
    """So many trials are drawn at random first; where not given, a quarter of them, at least 4."""


SearcherSpec = Annotated[GridSearcher | RandomSearcher | TpeSearcher, Field(discriminator="kind")]


class NoScheduler(Spec):
    """Every trial trains to its end."""

    kind: Literal["none"]


class AshaScheduler(Spec):
    """Asynchronous successive halving: of the trials that reach a rung, the better part goes on."""

    kind: Literal["asha"]
    grace_evaluations: int = Field(default=1, ge=1)
    """The first rung, counted in evaluations; each next one is `reduction_factor` times as far."""
    reduction_factor: float = Field(default=3.0, gt=1)
    """One of so many goes on."""


class MedianScheduler(Spec):
    """A trial ends when its best value is below the median of the others' means so far."""

    kind: Literal["median"]
    grace_evaluations: int = Field(default=2, ge=1)
    """No trial ends before it was evaluated so often."""
    min_trials: int = Field(default=3, ge=1)
    """So many others must have come as far."""


SchedulerSpec = Annotated[NoScheduler | AshaScheduler | MedianScheduler, Field(discriminator="kind")]
