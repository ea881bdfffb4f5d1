"""What the engine has sent, how long that took, and how much of what was to be sent is still owed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from eagleray.compression.jobs import Job, Running
from eagleray.compression.memory import RESIDUAL, Memory
from eagleray.compression.stats import Stats
from eagleray.compression.wire import Wire, ring_bytes

SAMPLED_EVERY = 50
"""Steps from one measurement of the relative error to the next; the first is the second step's."""


class Reading(NamedTuple):
    """The wire's counters, and the clock."""

    sent_bytes: int
    payload_bytes: int
    probe_bytes: int
    waited_s: float
    probe_s: float
    at_s: float


class Meter:
    """Sums over all moves of all buckets. For the engine's thread; its sums may be read from any."""

    def __init__(self, wire: Wire, memory: Memory):
        self.stats = Stats()
        self.buckets: dict[tuple[str, ...], Stats] = {}
        """The same by bucket, of those that DDP has at the moment; a key is the parameters' names."""
        self._wire, self._memory = wire, memory
        self._lost = self._wanted = 0.0
        self._error: float | None = None

    def read(self) -> Reading:
        """As it is now: before a move."""
        wire = self._wire
        counted = (wire.sent_bytes, wire.payload_bytes, wire.probe_bytes, wire.waited_s, wire.probe_s)
        return Reading(*counted, time.perf_counter())

    def begin(self, running: Running) -> None:
        """A bucket begins: in a sampled step, note how much there is to send."""
        if running.job.step.number % SAMPLED_EVERY == 2:
            running.signal = self._signal(running)

    def conclude(self, running: Running) -> None:
        """A bucket is over: in a sampled step, note how much of it is still owed."""
        job = running.job
        if running.signal is not None:
            lost, signal = float(self._over_residual(job, lambda start, kept: kept)), float(running.signal)
            if math.isfinite(lost) and math.isfinite(signal):  # a step that is skipped says nothing
                running.error = math.sqrt(lost / max(signal, 1e-38))
                self._lost, self._wanted = self._lost + lost, self._wanted + signal
        if job.is_last and self._wanted:
            self._error = math.sqrt(self._lost / self._wanted)
            self._lost = self._wanted = 0.0

    def add(self, running: Running, before: Reading, *, was_begun: bool, is_done: bool) -> None:
        """Add one move of a bucket to the sums, the model's and the bucket's."""
        now = self.read()
        gradient, key = running.job.gradient, running.job.bucket.key
        waited_s = now.waited_s - before.waited_s
        busy_s = now.at_s - before.at_s - waited_s - (now.probe_s - before.probe_s)
        more = Stats(
            sent_bytes=now.sent_bytes - before.sent_bytes,
            payload_bytes=now.payload_bytes - before.payload_bytes,
            uncompressed_bytes=ring_bytes(gradient.nbytes, self._wire.world_size) if is_done else 0,
            num_buckets=int(is_done),
            encode_s=0.0 if was_begun else busy_s,
            exchange_s=waited_s,
            decode_s=busy_s if was_begun else 0.0,
            relative_error=running.error,
            probe_bytes=now.probe_bytes - before.probe_bytes,
        )
        self.stats = self.stats.plus(replace(more, relative_error=self._error))
        self.buckets[key] = self.buckets.get(key, Stats()).plus(more)

    def add_state(self, before: Reading) -> None:
        """Add what was sent aside since then to collect the state."""
        self.stats = self.stats.plus(Stats(state_bytes=self._wire.probe_bytes - before.probe_bytes))

    def _signal(self, running: Running) -> Tensor | None:
        """Squared norm of g + e over the bucket, without the loss scale; None where nothing is kept."""
        if RESIDUAL not in self._memory.flats:
            return None
        scale = 1 / running.job.step.loss_scale
        return self._over_residual(
            running.job,
            lambda start, kept: torch.add(kept, running.work[start : start + kept.numel()], alpha=scale),
        )

    def _over_residual(self, job: Job, value: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Squared norm of `value(first element in the gradient, residual)` over the bucket's parameters."""
        flat = self._memory.flat(RESIDUAL, "mean")
        norms = [
            torch.linalg.vector_norm(value(start, flat[place.start : place.start + place.numel]))
            for place, start in job.bucket.parts
        ]
        return torch.stack(norms).square().sum()
