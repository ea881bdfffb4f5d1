"""How long a forward pass takes, learned while it is used: seconds = fixed + per sample x samples.

One line for each shape bucket. Samples of one shape cost the same; a longer text costs more.

Names: weighted moments of the pairs (samples, seconds), the newest of weight 1, each one before of FORGETTING
times less.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

FORGETTING = 0.98
"""A pass counts half after 35 others: a clock that changes is followed within a hundred."""
MAX_BUCKETS = 64
_SLOW, _FAST = 2.0, 0.5
"""Beyond these ratios to what was expected, a pass does not count..."""
_SLOW_IN_A_ROW, _FAST_IN_A_ROW, _FEW = 5, 3, 4
"""...unless so many come in a row: then the line has changed. One of few may have begun with a slow one."""
_PULL = 1.0
"""Weight of the slope that was known before, in samples squared: it decides where passes have one size."""
_KNOWN = 4.0
"""From this spread of the sizes on, in samples squared, the slope is this line's own."""
_NOISE_SHARE = 0.05
"""Of a pass, in the mean deviation."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a forward pass takes."""

    fixed_s: float
    per_sample_s: float

    def seconds(self, size: int) -> float:
        """Of a pass of `size` samples."""
        return self.fixed_s + self.per_sample_s * size


class LineFit:
    """One line, by least squares with exponential forgetting.

    The information form of recursive least squares, around the weighted mean: where all passes have one size
    nothing is known of the slope, which then stays what it was, and cannot drift. Times err to one side only:
    what is much slower than expected (a first call, a collection of garbage, another process) is left out.

    Source: West 1979, "Updating mean and variance estimates", for the moments; Ljung 1999, "System
    Identification", section 11.2, for the forgetting.
    """

    __slots__ = (
        "_cross",
        "_fast",
        "_mean_s",
        "_mean_size",
        "_noise",
        "_num",
        "_shape",
        "_slow",
        "_spread",
        "_weight",
    )

    def __init__(self, shape: Line | None = None) -> None:
        """Args: shape: What this one's slope is guessed by until it knows its own."""
        self._shape = shape
        self._num = self._slow = self._fast = 0
        self._noise = 0.0
        self._weight = self._mean_size = self._mean_s = self._spread = self._cross = 0.0

    @property
    def num_passes(self) -> int:
        """Since it began, or began anew."""
        return self._num

    def observe(self, size: int, seconds: float) -> None:
        """Take a pass into account, or leave it out."""
        if self._num and (self._shape is not None or self._spread > 0 or size == self._mean_size):
            ratio = seconds / max(self.line().seconds(size), 1e-9)
            if self._is_odd(ratio):
                return
            self._noise += _NOISE_SHARE * (min(abs(ratio - 1.0), 1.0) - self._noise)
        self._num += 1
        self._weight = FORGETTING * self._weight + 1.0
        by_size, by_s = size - self._mean_size, seconds - self._mean_s
        self._mean_size += by_size / self._weight
        self._mean_s += by_s / self._weight
        self._spread = FORGETTING * self._spread + by_size * (size - self._mean_size)
        self._cross = FORGETTING * self._cross + by_size * (seconds - self._mean_s)
        if self._spread >= _KNOWN:
            self._shape = self.line()

    def _is_odd(self, ratio: float) -> bool:
        """Whether the pass is to be left out; begins anew where it is one of many such."""
        self._slow = self._slow + 1 if ratio > _SLOW + 3 * self._noise else 0
        self._fast = self._fast + 1 if ratio < _FAST else 0
        if self._slow >= _SLOW_IN_A_ROW or self._fast >= (1 if self._num < _FEW else _FAST_IN_A_ROW):
            self.__init__(self.line())
            return False
        return self._slow > 0 or self._fast > 0

    def line(self) -> Line:
        """As far as it is known. Only after the first pass."""
        assert self._num
        slope = (self._cross + _PULL * self._known_slope()) / (self._spread + _PULL)
        fixed_s = self._mean_s - slope * self._mean_size
        if slope < 0:
            return Line(self._mean_s, 0.0)
        if fixed_s < 0:
            return Line(0.0, self._mean_s / self._mean_size)
        return Line(fixed_s, slope)

    def _known_slope(self) -> float:
        """Without this line's own passes of different sizes: of the shape, at this line's mean."""
        if self._shape is None:
            return self._mean_s / self._mean_size
        expected_s = self._shape.seconds(1) + self._shape.per_sample_s * (self._mean_size - 1)
        return self._shape.per_sample_s * self._mean_s / max(expected_s, 1e-9)


class Fits:
    """A line for each shape bucket; of too many, the one that was not used for longest is forgotten.

    All methods may be called from any thread.
    """

    def __init__(self, max_buckets: int = MAX_BUCKETS) -> None:
        self._max_buckets = max_buckets
        self._seed = LineFit()
        self._buckets: OrderedDict[Hashable, LineFit] = OrderedDict()
        self._shares: dict[Hashable, tuple[float, int]] = {}
        """Samples of late of each bucket, and as of which pass."""
        self._num_passes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Buckets that are known."""
        return len(self._buckets)

    def seed(self, size: int, seconds: float) -> None:
        """A pass that was run for this alone, before any request: what a bucket is judged by at first."""
        with self._lock:
            self._seed.observe(size, seconds)

    def observe(self, bucket: Hashable, size: int, seconds: float) -> None:
        """Take a request's pass into account."""
        with self._lock:
            self._fit_of(bucket).observe(size, seconds)
            self._num_passes += 1
            self._shares[bucket] = (self._share(bucket) + size, self._num_passes)

    def _fit_of(self, bucket: Hashable) -> LineFit:
        if (fit := self._buckets.get(bucket)) is not None:
            self._buckets.move_to_end(bucket)
            return fit
        fit = LineFit(self._overall())
        while len(self._buckets) >= self._max_buckets:
            oldest, _ = self._buckets.popitem(last=False)
            del self._shares[oldest]
        self._buckets[bucket] = fit
        return fit

    def line(self, bucket: Hashable) -> Line | None:
        """What a pass of this shape will take; None before anything is known."""
        with self._lock:
            fit = self._buckets.get(bucket)
            return fit.line() if fit is not None else self._overall()

    def seconds(self, bucket: Hashable, size: int) -> float | None:
        """What a pass of `size` samples will take; None before anything is known."""
        line = self.line(bucket)
        return None if line is None else line.seconds(size)

    def overall(self) -> Line | None:
        """Of all buckets, each weighed by its samples of late; None before anything is known."""
        with self._lock:
            return self._overall()

    def _overall(self) -> Line | None:
        shares = {bucket: self._share(bucket) for bucket in self._buckets}
        total = sum(shares.values())
        if not total:
            return self._seed.line() if self._seed.num_passes else None
        lines = [(share / total, self._buckets[bucket].line()) for bucket, share in shares.items()]
        return Line(
            sum(share * line.fixed_s for share, line in lines),
            sum(share * line.per_sample_s for share, line in lines),
        )

    def _share(self, bucket: Hashable) -> float:
        samples, as_of = self._shares.get(bucket, (0.0, 0))
        return samples * FORGETTING ** (self._num_passes - as_of)
