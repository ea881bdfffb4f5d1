"""Reads what runs emit: dashboards, built from the metric table, and the Grafana that shows them."""

from eagleray.monitoring.dashboards import training_dashboard
from eagleray.monitoring.grafana import Grafana

__all__ = ["Grafana", "training_dashboard"]
