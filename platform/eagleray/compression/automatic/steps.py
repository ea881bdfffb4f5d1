"""When the buckets of this rank's steps were ready and done: two clock readings a bucket, no extra passes."""

from __future__ import annotations

import time
from typing import Any

from eagleray.compression.automatic.timeline import Backward
from eagleray.compression.layout import Bucket


class Steps:
    """The last step that is over, and the one that runs. On CUDA the times are those of the launches."""

    def __init__(self):
        self.period_s = 0.0
        """From the last step's first ready bucket to this one's."""
        self.backward = Backward(())
        self.buckets: tuple[Bucket, ...] = ()
        """Of the last step."""
        self.element_bytes = 4
        """Of the first bucket's gradient; it stands for all."""
        self._running: list[tuple[Bucket, float]] = []
        self._done_s = 0.0

    def begin(self, ready_s: float) -> None:
        """A step's first bucket is ready: the step before is over."""
        if self._running:
            first_s = self._running[0][1]
            self.period_s = ready_s - first_s
            self.backward = Backward(
                tuple(one - first_s for _, one in self._running), max(0.0, ready_s - self._done_s)
            )
            self.buckets = tuple(bucket for bucket, _ in self._running)
        self._running = []

    def add(self, bucket: Bucket, ready_s: float) -> None:
        """One of the step's buckets, the first too."""
        self._running.append((bucket, ready_s))

    def done(self) -> None:
        """One has been exchanged."""
        self._done_s = time.perf_counter()

    def report(self) -> dict[str, Any]:
        """The last step, for JSON."""
        return {"ready_s": self.backward.ready_s, "rest_s": self.backward.rest_s, "period_s": self.period_s}


def slowest(reports: list[dict[str, Any]]) -> Backward:
    """The backward pass of the rank that the others wait for."""
    found = max(reports, key=lambda one: one["rest_s"] + one["ready_s"][-1])
    return Backward(tuple(found["ready_s"]), found["rest_s"])
