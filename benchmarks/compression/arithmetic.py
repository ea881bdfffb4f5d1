"""What the rig computes: formula bytes, floors, bounds, counts of steps. No processes, no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

FRAME_HEADER = 66
"""Ethernet, IP and TCP with its time stamps. The interface counts it once per offloaded frame."""
FRAME_BODY = 64 << 10
"""What such a frame carries at most; every one is also answered by an acknowledgement of the other side's."""
SCALE_BYTES = 2
BLOCK_OF = {"int8": 256, "int4": 128, "onebit_adam": 256, "fourbit_adam": 128}
BITS_OF = {"int8": 8, "int4": 4, "onebit_adam": 1, "fourbit_adam": 4}
RATIO, RANK, DENSE_BELOW = 0.01, 4, 1024

Shapes = Sequence[tuple[int, ...]]


def formula_bytes(kind: str, shapes: Shapes, n: int) -> float:
    """Bytes that each of n ranks sends per step by `kind`, as the research's section 4.2 counts, and framed.

    Parameters of one dimension and small ones travel in float32, whatever the kind. Schemes of torch's are
    here by names of their own (torch_*).
    """
    dense = sum(math.prod(shape) for shape in shapes if _is_dense(shape))
    matrices = [shape for shape in shapes if not _is_dense(shape)]
    numel = sum(map(math.prod, matrices))
    ring = 2 * (n - 1) / n
    if kind in ("none", "dense"):
        body = ring * 4 * numel
    elif kind in ("fp16", "bf16"):
        body = ring * 2 * numel
    elif kind in BLOCK_OF:
        body = ring * numel * (BITS_OF[kind] / 8 + SCALE_BYTES / BLOCK_OF[kind])
    elif kind == "int8_ring":
        body = ring * numel
    elif kind == "topk":  # fp16 value and 16-bit index to every peer
        body = (n - 1) * RATIO * numel * 4
    elif kind == "randomk":  # indices by seed, fp16 values
        body = ring * RATIO * numel * 2
    elif kind == "powersgd":  # one side a step, in turn
        body = ring * 4 * RANK * statistics.mean(map(sum, _as_tables(matrices))) * len(matrices) / 2
    elif kind == "torch_powersgd":  # both sides each step
        body = ring * 4 * RANK * sum(map(sum, _as_tables(matrices)))
    elif kind == "torch_allgather8":
        body, dense = (n - 1) * numel, dense / 4 * n / 2
    elif kind == "compute only":
        return 0.0
    else:
        return math.nan
    return framed(body + ring * 4 * dense)


def framed(body: float) -> float:
    """Bytes the interface counts for `body` bytes: headers, and the acknowledgements of as many received."""
    return body * (1 + 2 * FRAME_HEADER / FRAME_BODY)


def floor_s(compute_s: float, sent_bytes: float, rate_mbit: float | None) -> float:
    """What no scheme that sends so many bytes can beat: computing, or filling the line (None: no limit)."""
    return max(compute_s, 0.0 if rate_mbit is None else sent_bytes * 8 / (rate_mbit * 1e6))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(low), float(middle), float(high)


def upper_bound(ratios: Sequence[float], *, level: float = 0.95, resamples: int = 4000) -> float:
    """One-sided upper bound of the median of `ratios` by bootstrap: the true median is above it in 5 %."""
    drawn = np.random.default_rng(0).choice(np.asarray(ratios), size=(resamples, len(ratios)))
    return float(np.quantile(np.median(drawn, axis=1), level))


def paired_interval(differences: Sequence[float], *, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of paired differences, and its two-sided interval by Student's t; one pair alone has none."""
    count, mean = len(differences), statistics.mean(differences)
    if count < 2:
        return mean, math.nan, math.nan
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    return mean, mean - half, mean + half


def steps_of_block(step_s: float, block_s: float) -> int:
    """How many steps a block of `block_s` seconds has: at least one, and 50 at most."""
    return min(max(1, round(block_s / max(step_s, 1e-6))), 50)


def draw_rates(count: int, seed: int, low_mbit: float = 50, high_mbit: float = 10_000) -> list[float]:
    """Line rates, log-uniform, in Mbit/s."""
    drawn = np.random.default_rng(seed).uniform(math.log(low_mbit), math.log(high_mbit), count)
    return [float(f"{math.exp(one):.3g}") for one in drawn]


class Budget:
    """Shares out what is left of a time among parts by weight: a part that took longer shortens the rest."""

    def __init__(self, total_s: float, weights: Sequence[float]):
        self._left_s, self._weights = total_s, list(weights)

    def next_s(self) -> float:
        """The next part's share, seconds."""
        return max(0.0, self._left_s) * self._weights[0] / sum(self._weights)

    def spent(self, seconds: float) -> None:
        """The next part is over, and took so long."""
        self._left_s -= seconds
        self._weights.pop(0)


def _is_dense(shape: tuple[int, ...]) -> bool:
    return len(shape) < 2 or math.prod(shape) < DENSE_BELOW


def _as_tables(shapes: Shapes) -> list[tuple[int, int]]:
    return [(shape[0], math.prod(shape[1:])) for shape in shapes]
