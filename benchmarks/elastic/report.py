"""What is said and kept: the issue's table in markdown, the JSON, the picture."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aims import AIMS, RESTART, Aim, Judged, judge, values_of

Rows = Mapping[str, Mapping[str, Any]]


def row_line(name: str, result: Mapping[str, Any]) -> str:
    """One line of a row that is over."""
    said = f"{name}: {len(result['repetitions'])} repetitions in {result['seconds']:.0f} s"
    if result["not_available"]:
        return f"{name}: not available: {result['not_available']}"
    return f"{said}; FAILED: {result['failure']}" if result["failure"] else said


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


def machine() -> dict[str, Any]:
    """What this ran on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def read(folder: Path) -> dict[str, Any]:
    """The rows that an earlier run wrote; none where there is no file."""
    path = folder / "elastic.json"
    return json.loads(path.read_text())["rows"] if path.exists() else {}


def save(rows: Rows, about: Mapping[str, Any], folder: Path) -> None:
    """Write elastic.json, whole, and elastic.png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    judged = [judge(aim, rows) for aim in AIMS if aim.row in rows]
    aims = [
        {
            "row": one.aim.row,
            "what": one.aim.what,
            "key": one.aim.key,
            "goal": one.goal,
            "median": one.median if one.values else None,
            "p95": one.p95 if one.values else None,
            "is_met": one.is_met,
            "beside": dict(one.beside),
        }
        for one in judged
    ]
    found = {**about, "machine": machine(), "aims": aims, "rows": dict(rows)}
    part = folder / "elastic.json.part"  # a run that is killed while it writes leaves the last whole file
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(folder / "elastic.json")
    _draw([one for one in judged if one.aim.unit == "s" and one.values], folder / "elastic.png")


def _draw(judged: Sequence[Judged], path: Path) -> None:
    """One line per aim in seconds: a dot for each repetition, a tick at the goal, a cross for stock Ray."""
    if not judged:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.42 * len(judged) + 1.2), layout="constrained")
    axes = figure.subplots()
    for at, one in enumerate(judged):
        colour = {True: "tab:blue", False: "tab:red", None: "0.5"}[one.is_met]
        axes.plot(one.values, [at] * len(one.values), "o", color=colour, markersize=4, alpha=0.5)
        axes.plot(one.median, at, "D", color=colour, markersize=6)
        if one.goal is not None:
            axes.plot(one.goal, at, "|", color="black", markersize=14)
        for value in one.beside.values():
            axes.plot(value, at, "x", color="0.4", markersize=6)
    axes.set_yticks(range(len(judged)), [one.aim.what for one in judged], fontsize=7)
    axes.set(xscale="log", xlabel="seconds")
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", color="0.93")
    axes.set_title(
        "each repetition (dot), the median (diamond), the goal (tick), stock Ray or a restart (cross)",
        fontsize=8,
    )
    FigureCanvasAgg(figure).print_png(str(path))
