"""What is said and kept: the issue's table in markdown, the JSON, the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aims import AIMS, RESTART, Aim, Judged, judge
from kit import keeping, picture
from kit.results import values_of

Rows = Mapping[str, Mapping[str, Any]]
NAME = "elastic"
"""Of its files."""


def table(rows: Rows, aims: Sequence[Aim] = AIMS) -> str:
    """The issue's table with what was measured, markdown; rows that were not run are left out."""
    lines = [
        "| | goal | median | p95 | worst | n | met | stock Ray 2.60, a restart (n): this run | before |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for aim in aims:
        if aim.row in rows:
            counts = {name: len(values_of(rows.get(name), aim.key)) for name in aim.beside}
            lines.append(_line(judge(aim, rows), rows[aim.row], counts))
    return "\n".join(lines)


def _line(judged: Judged, row: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    aim, values = judged.aim, judged.values
    beside = ", ".join(
        f"{'restart' if name.endswith(RESTART) else 'stock'} {_text(value, aim)} ({counts[name]})"
        for name, value in judged.beside.items()
    )
    if not values:
        why = row["not_available"] or row["failure"] or "nothing was told"
        cells = [f"not available: {why.splitlines()[0]}" if row["not_available"] else why.splitlines()[0]]
        return f"| {aim.what} | {_goal(judged)} | {cells[0]} | | | 0 | | {beside} | {aim.stock} |"
    met = {True: "yes", False: "**no**", None: ""}[judged.is_met]
    figures = [_text(one, aim) for one in (judged.median, judged.p95, _worst(judged))]
    broken = " (then failed)" if row["failure"] else ""
    return (
        f"| {aim.what} | {_goal(judged)} | {' | '.join(figures)} | {len(values)}{broken} | {met} "
        f"| {beside} | {aim.stock} |"
    )


def _worst(judged: Judged) -> float:
    return min(judged.values) if judged.aim.at_least else max(judged.values)


def _goal(judged: Judged) -> str:
    aim = judged.aim
    if aim.goal is None:
        return ""
    if judged.goal is None:
        return f"≤ {aim.goal}"
    worst = "" if aim.worst is None else f" (worst {_text(aim.worst, aim)})"
    said = f"{aim.goal}: " if isinstance(aim.goal, str) else ""
    sign = "≥" if aim.at_least else "≤"
    return f"{said}{sign} {_text(judged.goal, aim)}{worst}" if judged.goal else f"{said}0"


def _text(value: float, aim: Aim) -> str:
    if aim.unit == "%":
        return f"{value:.1%}"
    if aim.unit == "s":
        return f"{value:.2f} s"
    return f"{value:g}" if value == int(value) else f"{value:.1e}"


def read(folder: Path) -> dict[str, Any]:
    """The rows that an earlier run wrote; none where there is no file."""
    return keeping.read_rows(folder / f"{NAME}.json")


def save(rows: Rows, about: Mapping[str, Any], folder: Path) -> None:
    """Write elastic.json, whole, and elastic.png into `folder`."""
    judged = [judge(aim, rows) for aim in AIMS if aim.row in rows]
    aims = [keeping.became(one, p95=one.p95 if one.values else None) for one in judged]
    keeping.write_rows(rows, aims, about, folder / f"{NAME}.json")
    _draw([one for one in judged if one.aim.unit == "s" and one.values], folder / f"{NAME}.png")


def _draw(judged: Sequence[Judged], path: Path) -> None:
    """One line per aim in seconds: a dot for each repetition, a tick at the goal, a cross for stock Ray."""
    if not judged:
        return
    title = "each repetition (dot), the median (diamond), the goal (tick), stock Ray or a restart (cross)"
    with picture.of_aims(path, [one.aim.what for one in judged], "seconds", title) as axes:
        for at, one in enumerate(judged):
            picture.dots(axes, at, one)
            if one.goal is not None:
                axes.plot(one.goal, at, "|", color="black", markersize=14)
