"""The optimisation history of a search as one PNG: what each trial came to, and how it got there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagleray.evaluation.canvas import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"finished": "#2a6f97", "stopped": "#e09f3e", "interrupted": "#8d99ae", "running": "#8d99ae"}
_BEST, _FAILED = "#2d6a4f", "#b03030"
_MAX_LABELLED = 12


@dataclass(frozen=True)
class TrialCurve:
    """One trial as the picture shows it."""

    number: int
    state: str
    points: Sequence[tuple[float, float]]
    """(step, metric) of each evaluation."""

    @property
    def value(self) -> float | None:
        """The last finite value."""
        finite = [value for _, value in self.points if math.isfinite(value)]
        return finite[-1] if finite else None


def plot_search(
    trials: Sequence[TrialCurve],
    best_so_far: Sequence[tuple[int, float]],
    path: Path,
    *,
    title: str,
    metric: str,
    winner: int | None = None,
) -> None:
    """Draw the history into the PNG file `path` (1200 x 1080 pixels, replaced where it exists).

    Args:
        trials: In any order; empty is fine.
        best_so_far: (number of a trial, best value of those up to it).
        path: The file; its folder exists.
        title: Stands above the panels.
        metric: What the values are.
        winner: Number of the best trial.
    """
    with figure(path, (10, 9)) as drawn:
        history, curves = drawn.subplots(2, 1)
        drawn.suptitle(title, fontsize=13)
        _history(history, trials, best_so_far, metric, winner)
        _curves(curves, trials, metric, winner)


def _history(
    axes: Axes,
    trials: Sequence[TrialCurve],
    best_so_far: Sequence[tuple[int, float]],
    metric: str,
    winner: int | None,
) -> None:
    from matplotlib.ticker import MaxNLocator

    for state, colour in _COLOURS.items():
        points = [(one.number, one.value) for one in trials if one.state == state and one.value is not None]
        if points:
            numbers, values = zip(*points, strict=True)
            axes.scatter(numbers, values, s=42, color=colour, label=_name(state), zorder=3)
    failed = [one.number for one in trials if one.state == "failed"]
    if failed:
        place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.scatter(failed, [0.03] * len(failed), marker="x", s=42, color=_FAILED, label="failed", **place)
    if best_so_far:
        numbers, values = zip(*best_so_far, strict=True)
        axes.step(numbers, values, where="post", color=_BEST, linewidth=1.6, label="best so far")
    best = next((one for one in trials if one.number == winner and one.value is not None), None)
    if best is not None and best.value is not None:
        axes.annotate(
            f"trial {best.number}: {best.value:.4f}",
            (best.number, best.value),
            textcoords="offset points",
            xytext=(0, 10),
            ha="center",
            fontsize=9,
            color=_BEST,
        )
        axes.margins(y=0.18)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, "trial", metric)


def _curves(axes: Axes, trials: Sequence[TrialCurve], metric: str, winner: int | None) -> None:
    ends: list[tuple[float, float, int]] = []
    for one in sorted(trials, key=lambda one: one.number == winner):
        points = [(step, value) for step, value in one.points if math.isfinite(value)]
        if not points:
            continue
        is_best = one.number == winner
        steps, values = zip(*points, strict=True)
        axes.plot(
            steps,
            values,
            color=_BEST if is_best else _COLOURS.get(one.state, _FAILED),
            linewidth=2.2 if is_best else 1.1,
            alpha=1 if is_best else 0.75,
            marker="o",
            markersize=2.5,
            label=f"trial {one.number}, the best" if is_best else None,
        )
        ends.append((*points[-1], one.number))
    if len(trials) <= _MAX_LABELLED:
        _label(axes, ends)
    _finish(axes, "step", metric)


def _label(axes: Axes, ends: Sequence[tuple[float, float, int]]) -> None:
    """Each curve's number at its end; those of curves that end together side by side."""
    low, high = axes.get_ylim()
    at: dict[tuple[float, int], list[int]] = {}
    for step, value, number in ends:
        at.setdefault((step, round((value - low) / (high - low) * 25)), []).append(number)
    for (step, place), numbers in at.items():
        axes.annotate(
            " ".join(map(str, sorted(numbers))),
            (step, low + place / 25 * (high - low)),
            textcoords="offset points",
            xytext=(6, -3),
            fontsize=8,
        )


def _finish(axes: Axes, x_label: str, metric: str) -> None:
    if not axes.has_data():
        axes.text(0.5, 0.5, f"no {metric} measured", transform=axes.transAxes, ha="center", color="grey")
    axes.set_xlabel(x_label)
    axes.set_ylabel(metric.replace("_", " "))
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=9)


def _name(state: str) -> str:
    return {"finished": "trained to the end", "stopped": "ended early"}.get(state, state)
