"""A figure without matplotlib's global state, written as PNG; the colours that pictures over time share."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, SKY, GREEN, YELLOW = "#0072B2", "#56B4E9", "#009E73", "#F0E442"
ORANGE, VERMILION, PURPLE, GREY = "#E69F00", "#D55E00", "#CC79A7", "#9A9A9A"
"""Told apart by the colour-blind too. Source: Okabe and Ito, Color Universal Design, 2008."""


@contextlib.contextmanager
def figure(path: Path, size_inches: tuple[float, float], *, dpi: int = 120) -> Iterator[Figure]:
    """A figure to draw on; the PNG file `path` is written at the end (replaced where it exists)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    drawn = Figure(figsize=size_inches, dpi=dpi, layout="constrained")
    canvas = FigureCanvasAgg(drawn)
    yield drawn
    for text in drawn.findobj(Text):
        _as_it_is(text)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box
        canvas.print_png(path)


def time_axis(axes: Axes, seconds: float) -> float:
    """Label the x axis as time since something `seconds` ago; returns the seconds of its unit."""
    units = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0}
    unit, unit_s = next((one for one in units.items() if seconds < 300 * one[1]), ("days", units["days"]))
    axes.set_xlabel(unit)
    return unit_s


def _as_it_is(text: Any) -> None:
    """A label is no formula, whatever dollars are in it."""
    text.set_parse_math(False)
