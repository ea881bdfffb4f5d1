"""The frame of the benchmarks' pictures: something on each line, and a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {True: "tab:blue", False: "tab:red", None: "0.5"}
"""Of an aim that is met, of one that is not, and of what has none."""


@contextmanager
def drawn(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches; a PNG at the end of the block."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    FigureCanvasAgg(figure).print_png(str(path))


def frame(axes: Axes, names: Sequence[str], xlabel: str) -> None:
    """The axes of a panel with a line for each name, the first one on top."""
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set(xscale="log", xlabel=xlabel)
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", color="0.93")


@contextmanager
def of_aims(path: Path, names: Sequence[str], xlabel: str, title: str) -> Iterator[Axes]:
    """The axes of a picture with a line for each aim."""
    with drawn(path, 9, 0.42 * len(names) + 1.2) as figure:
        axes = figure.subplots()
        yield axes
        frame(axes, names, xlabel)
        axes.set_title(title, fontsize=8)


def dots(axes: Axes, at: int, judged: Any, *, over: float = 1.0, least: float = -math.inf) -> None:
    """A dot for each repetition, a diamond for the median, a cross for each that stands beside.

    Args:
        axes: Where to draw.
        at: The line.
        judged: Of the benchmark's own `aims.judge`.
        over: What all figures are divided by.
        least: What is less is drawn there.
    """

    def scaled(value: float) -> float:
        return max(value / over, least)

    colour = COLOURS[judged.is_met]
    values = [scaled(value) for value in judged.values]
    axes.plot(values, [at] * len(values), "o", color=colour, markersize=4, alpha=0.5)
    axes.plot(scaled(judged.median), at, "D", color=colour, markersize=6)
    for value in judged.beside.values():
        axes.plot(scaled(value), at, "x", color="0.4", markersize=6)
