"""From a model package to answers: what `evaluate` and a service's replica share."""

from eagleray.inference.predictor import Predictor

__all__ = ["Predictor"]
