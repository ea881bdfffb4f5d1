"""What a run or a model is worth: curves now, reports and explanations later."""

from eagleray.evaluation.curves import plot_curves

__all__ = ["plot_curves"]
