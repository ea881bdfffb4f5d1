"""The emitter over Ray's metrics: a value shows up on its node's Prometheus port, with `ray_` in front."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from eagleray import metrics


class RayEmitter:
    """A metrics.Emitter for drivers, workers and actors of a Ray cluster; safe in threads and when pickled.

    Each of Ray's instruments is made at its first use, in the process that uses it, and kept: Ray exports the
    values every `metrics_report_interval_ms` (10 s).
    """

    def __init__(self) -> None:
        self._instruments: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[RayEmitter], tuple[()]]:
        return RayEmitter, ()

    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge. Raises: KeyError or AssertionError where it is not the table's."""
        row = metrics.check(name, "gauge", labels)
        self._instrument(row).set(float(value), tags=dict(labels))

    def add(self, name: str, amount: float, labels: Mapping[str, str]) -> None:
        """Raise a counter by `amount` >= 0. Raises: KeyError or AssertionError as `set`, or for a fall."""
        row = metrics.check(name, "counter", labels)
        assert amount >= 0, f"{name} can only rise, not by {amount}"
        if amount > 0:  # Ray's Counter refuses 0
            self._instrument(row).inc(float(amount), tags=dict(labels))

    def _instrument(self, row: metrics.Metric) -> Any:
        from ray.util.metrics import Counter, Gauge

        with self._lock:
            if row.name not in self._instruments:
                kind = Gauge if row.kind == "gauge" else Counter
                self._instruments[row.name] = kind(row.name, row.meaning, row.labels)
            return self._instruments[row.name]
