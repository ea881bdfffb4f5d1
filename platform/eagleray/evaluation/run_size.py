"""The size of a run over time as one PNG, and where its time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from eagleray.evaluation.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    figure,
    time_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "useful": GREEN,
    "start": GREY,
    "wait": "#D8D8D8",
    "detect": VERMILION,
    "reschedule": ORANGE,
    "restore": YELLOW,
    "redo": PURPLE,
    "checkpoint": BLUE,
    "rest": SKY,
}
_NAMES = {"useful": "steps (useful)", "rest": "rest (evaluation, end)"}
_MAX_COMMITS = 400
"""More of them would be one grey bar."""


@dataclass(frozen=True)
class Course:
    """What a run did when. Times are seconds since the epoch."""

    began_at: float
    ended_at: float
    sizes: Sequence[tuple[float, int]]
    """(from when on, how many workers train), in their order."""
    stretches: Sequence[tuple[float, float, str]] = ()
    """(begin, end, kind): of the kinds of a goodput report."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """In sum, of each kind."""
    losses: Sequence[float] = ()
    resizes: Sequence[float] = ()
    """Planned ones."""
    suspensions: Sequence[tuple[float, float]] = ()
    """(begin, end)."""
    commits: Sequence[float] = ()


def plot_size(course: Course, path: Path, *, title: str) -> None:
    """Draw the course into the PNG file `path` (1200 x 720 pixels, replaced where it exists)."""
    with figure(path, (10, 6)) as drawn:
        drawn.suptitle(title, fontsize=13)
        sizes, when, amount = drawn.subplots(3, 1, sharex=True, height_ratios=(6, 1, 1))
        unit_s = time_axis(amount, course.ended_at - course.began_at)
        amount.set_xlabel(f"{amount.get_xlabel()} since the submission")
        amount.set_xlim(0, max(course.ended_at - course.began_at, 1e-3) / unit_s)
        _sizes(sizes, course, unit_s)
        _when(when, course, unit_s)
        _amount(amount, course, unit_s)


def _sizes(axes: Axes, course: Course, unit_s: float) -> None:
    from matplotlib.ticker import MaxNLocator

    times = [0.0, *(_since(time, course, unit_s) for time, _ in course.sizes)]
    workers = [0, *(size for _, size in course.sizes)]
    times, workers = [*times, _since(course.ended_at, course, unit_s)], [*workers, workers[-1]]
    most = max(workers)
    axes.step(times, workers, where="post", color="black", linewidth=1.6)
    axes.fill_between(times, workers, step="post", color=GREEN, alpha=0.22, linewidth=0)
    axes.set_ylim(0, max(most, 1) * 1.28)
    marks = [
        ("worker lost", course.losses, "X", VERMILION, 70),
        ("planned change", course.resizes, "D", "#333333", 46),
    ]
    for label, moments, marker, colour, size in marks:
        if moments:
            at = [_since(moment, course, unit_s) for moment in moments]
            height = [max(most, 1) * 1.12] * len(at)
            axes.scatter(
                at, height, marker=marker, s=size, color=colour, edgecolor="white", label=label, zorder=4
            )
            axes.vlines(at, 0, height, color=colour, linewidth=0.9, alpha=0.55, zorder=2)
    for number, (begin, end) in enumerate(course.suspensions):
        label = None if number else "suspended"
        span = (_since(begin, course, unit_s), _since(end, course, unit_s))
        axes.axvspan(*span, color=_COLOURS["wait"], alpha=0.6, linewidth=0, label=label, zorder=0)
    commits = [_since(moment, course, unit_s) for moment in course.commits]
    if commits and len(commits) <= _MAX_COMMITS:
        axes.vlines(commits, 0, max(most, 1) * 0.06, color=BLUE, linewidth=1.6, label="checkpoint", zorder=3)
    axes.set_ylabel("workers that train")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right", bbox_to_anchor=(1, 1.13), ncols=4, frameon=False, fontsize=9.5)


def _when(axes: Axes, course: Course, unit_s: float) -> None:
    """The kind of each moment; a short one is still a pixel or two wide."""
    for kind, colour in _COLOURS.items():
        spans = [
            (_since(begin, course, unit_s), (end - begin) / unit_s)
            for begin, end, found in course.stretches
            if found == kind
        ]
        edge = 0.0 if kind in ("useful", "rest") else 1.3
        axes.broken_barh(spans, (0, 1), facecolor=colour, edgecolor=colour, linewidth=edge)
    _strip(axes, "when")


def _amount(axes: Axes, course: Course, unit_s: float) -> None:
    """The sum of each kind, side by side: as long as the run."""
    total = sum(course.seconds.values())
    left = 0.0
    for kind, colour in _COLOURS.items():
        seconds = course.seconds.get(kind, 0.0)
        if seconds <= 0:
            continue
        label = f"{_NAMES.get(kind, kind)} {_amount_of(seconds)}, {seconds / total:.1%}"
        axes.broken_barh([(left, seconds / unit_s)], (0, 1), facecolor=colour, linewidth=0, label=label)
        left += seconds / unit_s
    _strip(axes, "in sum")
    if left:
        axes.figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=9.5,
        )


def _strip(axes: Axes, name: str) -> None:
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_ylabel(name, rotation=0, ha="right", va="center")
    axes.spines[["top", "right", "left"]].set_visible(False)


def _since(time: float, course: Course, unit_s: float) -> float:
    return (time - course.began_at) / unit_s


def _amount_of(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:,.0f} min"
