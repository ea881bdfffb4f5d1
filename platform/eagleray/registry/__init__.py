"""MLflow: the tracking of runs; model versions later."""

from eagleray.registry.tracking import Tracker

__all__ = ["Tracker"]
