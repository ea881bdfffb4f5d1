"""The curves of a run as one PNG: loss above, metrics (if any) below, what happened as vertical lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eagleray.evaluation.canvas import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOSSES = {"loss": "training loss", "validation_loss": "validation loss", "test_loss": "test loss"}
_METRICS = ("accuracy", "mae", "mse", "perplexity", "f1")
_EVENT_COLOUR = "#b03030"
_MAX_MARKED_POINTS = 40


def plot_curves(
    history: Sequence[Mapping[str, float]],
    path: Path,
    *,
    title: str,
    events: Sequence[tuple[int, str]] = (),
    size_inches: tuple[float, float] = (10, 7.5),
) -> None:
    """Draw the curves into the PNG file `path` (1200 x 900 pixels, replaced where it exists).

    Args:
        history: What was reported, each with `step`, in any order; a value that is missing or not finite is
            left out. Empty is fine.
        path: The file; its folder exists.
        title: Stands above the panels.
        events: (step, what happened), recoveries for instance.
        size_inches: Width and height; an inch is 120 pixels.
    """
    panels = {"loss": _series(history, _LOSSES), "metrics": _series(history, _metric_names(history))}
    if not panels["metrics"]:  # a run on values has none
        del panels["metrics"]
    with figure(path, size_inches) as drawn:
        drawn.suptitle(title, fontsize=13)
        rows = drawn.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, series) in zip(rows, panels.items(), strict=True):
            _panel(axes, series, name, events)
        rows[-1].set_xlabel("step")


def _metric_names(history: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """The metrics that were reported: those on a part of the data, such as `validation_accuracy`."""
    names = {name: None for report in history for name in report}
    return {name: name.replace("_", " ") for name in names if name.endswith(_METRICS)}


def _series(
    history: Sequence[Mapping[str, float]], names: Mapping[str, str]
) -> list[tuple[str, list[float], list[float]]]:
    """(label, steps, values) of each name that was ever finite, in order of steps."""
    series = []
    for name, label in names.items():
        points = {
            report["step"]: report[name]
            for report in history
            if report.get(name) is not None and math.isfinite(report[name])
        }  # a step that was redone after a loss counts as it was the last time
        if points:
            series.append((label, sorted(points), [points[step] for step in sorted(points)]))
    return series


def _panel(
    axes: Axes,
    series: list[tuple[str, list[float], list[float]]],
    name: str,
    events: Sequence[tuple[int, str]],
) -> None:
    for label, steps, values in series:
        marker = "o" if len(steps) <= _MAX_MARKED_POINTS else ""
        axes.plot(steps, values, marker=marker, markersize=3.5, linewidth=1.6, label=label)
    if not series:
        axes.text(0.5, 0.5, f"no {name} reported", transform=axes.transAxes, ha="center", color="grey")
    for index, (step, what) in enumerate(events):
        label = what if [w for _, w in events].index(what) == index else None  # each kind once in the legend
        axes.axvline(step, color=_EVENT_COLOUR, linestyle="--", linewidth=1.2, label=label)
    axes.set_ylabel(name)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if series or events:
        axes.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=9)
