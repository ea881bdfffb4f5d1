"""Steps that are not finite are counted; what they have made of the model's memory is taken back."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from eagleray.compression.jobs import Job
from eagleray.compression.layout import Bucket
from eagleray.compression.memory import Memory
from eagleray.compression.stats import NonFinite
from eagleray.compression.wire import Step

GUARDED_STEPS = 1000
"""For so many steps after one that was not finite, residuals are copied before each is exchanged, so that the
next such step takes nothing of them along; with a loss scale always, where such steps are everyday. Else only
from the bucket on of which it is known."""
_log = logging.getLogger("eagleray.compression")


class Guard:
    """Counts such steps, and has the memory copied where one is likely. For the engine's thread."""

    def __init__(self, memory: Memory, rank: int):
        self.non_finite = NonFinite()
        self._memory, self._rank = memory, rank
        self._bad: str | None = None
        """A parameter that was not finite in this step."""
        self._guarded_until, self._is_whole = 0, True
        """Up to which step all can be taken back; and whether all of this one can."""

    def begin(self, job: Job) -> None:
        """A bucket begins: copy what it may have to give back.

        Whether it is known by then that the step is not finite is a matter of time, and so another on each
        rank; whether steps are guarded is the same on all.
        """
        if self._bad is not None or self._is_guarded(job.step):
            self._memory.keep(job.bucket.places)

    def conclude(self, job: Job, bad: int) -> None:
        """A bucket is over, and with the step's last one the step; `bad` is of `Plan.run`."""
        if bad >= 0:
            self._bad = self._bad or job.bucket.key[bad]
        self._is_whole &= self._memory.has_kept(job.bucket.places)
        if job.is_last:
            self._judge(job.step)

    def _judge(self, step: Step) -> None:
        """What the step has made of the memory stays, or is taken back."""
        self.non_finite = self.non_finite.then(self._bad, is_whole=self._is_whole)
        if self._bad is None:
            self._memory.let_go(free=not self._is_guarded(step))
        else:
            self._memory.take_back(has_all=self._is_guarded(step))
            self._guarded_until = step.number + GUARDED_STEPS
            if not self._is_whole and self._rank == 0:
                _log.warning(
                    "compression: %s was not finite in step %d: what was sent of residuals until that was "
                    "known is lost; the next %d can be taken back", self._bad, step.number, GUARDED_STEPS,
                )  # fmt: skip
        self._bad, self._is_whole = None, True

    def _is_guarded(self, step: Step) -> bool:
        """Whether it is likely enough that the step is not finite."""
        return step.loss_scale != 1.0 or step.number <= self._guarded_until


class Alone:
    """Counts such steps of a rank that exchanges nothing: one look at each bucket, on its device.

    What was seen is read when somebody asks, or in the next step: a GPU is not waited for.
    """

    def __init__(self) -> None:
        self._non_finite = NonFinite()
        self._seen: list[tuple[Bucket, Tensor, tuple[Tensor, Tensor]]] = []
        """Of the last step, until it is judged: buckets, and their least and largest number."""

    def see(self, bucket: Bucket, gradient: Tensor, *, is_first: bool) -> None:
        """A bucket's gradient [N] is there; the first one of a step ends the step before."""
        if is_first:
            self.non_finite()
        if gradient.numel():
            self._seen.append((bucket, gradient, torch.aminmax(gradient)))

    def non_finite(self) -> NonFinite:
        """Up to the last step. The parameter is that, or another of its bucket if the gradient has gone."""
        if self._seen:
            bad = [
                bucket.key[_first_bad(bucket, gradient)]
                for bucket, gradient, extremes in self._seen
                if not torch.stack(extremes).isfinite().all()
            ]
            self._non_finite = self._non_finite.then(bad[0] if bad else None, is_whole=True)
            self._seen.clear()
        return self._non_finite


def _first_bad(bucket: Bucket, gradient: Tensor) -> int:
    """Index of the first parameter that is not finite; 0 where all are."""
    finite = [gradient[start : start + place.numel].isfinite().all() for place, start in bucket.parts]
    return next((index for index, one in enumerate(finite) if not one), 0)
