"""What every kind of metrics has: values by name, a loss that a judgement can weigh, and notes in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eagleray.errors import EvaluationError

Array = NDArray[Any]
Task = Literal["classification", "regression", "language modelling"]


@dataclass(frozen=True)
class Loss:
    """A mean over samples, how sure it is, and what the best constant guess would score."""

    mean: float
    standard_error: float
    baseline: float
    """Cross-entropy of the class (or token) frequencies, or the variance of the values, in the same unit."""

    @classmethod
    def of(cls, losses: Array, baseline: float) -> Loss:
        """Of the samples' losses [N]."""
        deviation = float(losses.std(ddof=1)) if len(losses) > 1 else 0.0
        return cls(float(losses.mean()), deviation / math.sqrt(len(losses)), float(baseline))


@dataclass(frozen=True)
class Metrics:
    """What a model is worth on one part of a dataset."""

    task: Task
    num_samples: int
    values: Mapping[str, float]
    """By name, the most telling first; all finite."""
    loss: Loss
    notes: tuple[str, ...]
    """What could not be computed, and what to know about what was."""

    def details(self) -> dict[str, Any]:
        """What `values` cannot hold, as JSON."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """The values and the details as JSON."""
        return {
            "task": self.task,
            "num_samples": self.num_samples,
            "values": dict(self.values),
            "loss": vars(self.loss),
            "notes": list(self.notes),
            **self.details(),
        }


def finite(outputs: Array, what: str, first: int = 0) -> Array:
    """`outputs` [N, ...] as they are; the first of them is of sample `first`.

    Raises: EvaluationError if a sample has NaN or infinite ones.
    """
    is_bad = ~np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
    if is_bad.any():
        raise EvaluationError(
            f"the model's {what} are NaN or infinite in {int(is_bad.sum())} samples "
            f"(first: sample {first + int(np.flatnonzero(is_bad)[0])}); its training diverged or its "
            "weights are damaged: look at the run's curve, or judge another run or version"
        )
    return outputs


def entropy(counts: Array) -> float:
    """Of the distribution that `counts` [K] stand for, in nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0
