"""Metrics of predicted values, by scikit-learn.

Names: N samples, V values of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eagleray.evaluation.metrics import Array, Loss, Metrics, finite

_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_MAX_OUTPUTS = 50
"""Scores of more outputs than that are not listed one by one."""


@dataclass(frozen=True)
class OutputScores:
    """One of several values."""

    number: int
    mae: float
    rmse: float
    r2: float | None


@dataclass(frozen=True)
class Regression(Metrics):
    """What predicted values are worth; errors are in the target's own unit."""

    quantiles: Mapping[str, float]
    """Of the residuals, predicted - true, over all values: "0.05" -> residual."""
    per_output: tuple[OutputScores, ...]
    """Empty where there is one value."""

    def details(self) -> dict[str, Any]:
        """Quantiles of the residuals, and scores by output."""
        return {
            "residual_quantiles": dict(self.quantiles),
            "per_output": [vars(scores) for scores in self.per_output],
        }


def regression(targets_NV: Array, values_NV: Array) -> Regression:
    """The metrics of predicted values. Raises: EvaluationError where a value is not finite."""
    from sklearn import metrics

    values_NV = finite(values_NV, "values").reshape(len(targets_NV), -1).astype(np.float64)
    targets_NV = targets_NV.reshape(len(targets_NV), -1).astype(np.float64)
    residuals_NV = values_NV - targets_NV
    variances_V = targets_NV.var(axis=0)
    values = {
        "mae": float(metrics.mean_absolute_error(targets_NV, values_NV)),
        "rmse": float(np.sqrt(metrics.mean_squared_error(targets_NV, values_NV))),
        "mse": float(metrics.mean_squared_error(targets_NV, values_NV)),
    }
    has_spread = len(targets_NV) > 1 and bool((variances_V > 0).all())
    if has_spread:
        values["r2"] = float(metrics.r2_score(targets_NV, values_NV))
        values["explained_variance"] = float(metrics.explained_variance_score(targets_NV, values_NV))
    values["median_absolute_error"] = float(metrics.median_absolute_error(targets_NV, values_NV))
    values["max_error"] = float(np.abs(residuals_NV).max())
    values["mean_residual"] = float(residuals_NV.mean())
    quantiles = np.quantile(residuals_NV, _QUANTILES)
    return Regression(
        task="regression",
        num_samples=len(targets_NV),
        values=values,
        loss=Loss.of(np.square(residuals_NV).mean(axis=1), float(variances_V.mean())),
        notes=() if has_spread else (_no_spread(len(targets_NV)),),
        quantiles={f"{share:g}": float(value) for share, value in zip(_QUANTILES, quantiles, strict=True)},
        per_output=tuple(_outputs(targets_NV, residuals_NV)),
    )


def _outputs(targets_NV: Array, residuals_NV: Array) -> list[OutputScores]:
    if not 1 < targets_NV.shape[1] <= _MAX_OUTPUTS:
        return []
    mse_V, variance_V = np.square(residuals_NV).mean(axis=0), targets_NV.var(axis=0)
    return [
        OutputScores(
            number,
            float(np.abs(residuals_NV[:, number]).mean()),
            float(np.sqrt(mse)),
            float(1 - mse / variance) if variance > 0 else None,
        )
        for number, (mse, variance) in enumerate(zip(mse_V, variance_V, strict=True))
    ]


def _no_spread(num_samples: int) -> str:
    if num_samples == 1:
        return "There is one sample only: R2 and explained variance are left out. Judge on more data"
    return "All targets of an output are equal: R2 and explained variance are left out. Judge on more data"
