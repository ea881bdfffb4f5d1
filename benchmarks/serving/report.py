"""What is said and kept: the issue's table in markdown, the peers', the JSON, the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aims import AIMS, Aim, Judged, judge
from kit import keeping, picture
from kit.results import values_of

Rows = Mapping[str, Mapping[str, Any]]
NAME = "serving"
"""Of its files."""


def table(rows: Rows, aims: Sequence[Aim] = AIMS) -> str:
    """The issue's table with what was measured, markdown; rows that were not run are left out."""
    lines = [
        "| | goal | median (quartiles) | n | met | peers, same run | before |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_line(judge(aim, rows), rows[aim.row], rows) for aim in aims if aim.row in rows]
    return "\n".join(lines)


def _line(judged: Judged, row: Mapping[str, Any], rows: Rows) -> str:
    aim = judged.aim
    beside = ", ".join(
        f"{rows[name]['facts'].get('title', name)} {text(value, aim.unit)}"
        for name, value in judged.beside.items()
    )
    if not judged.values:
        why = (row["not_available"] or row["failure"] or "nothing was told").splitlines()[0]
        said = f"not available: {why}" if row["not_available"] else f"failed: {why}"
        return f"| {aim.what} | {goal(judged)} | {_cell(said)} | 0 | | {beside} | {aim.before} |"
    low, high = (text(value, aim.unit) for value in judged.quartiles)
    figures = f"{text(judged.median, aim.unit)} ({low} … {high})"
    if aim.binds == "worst":
        figures = f"{text(judged.median, aim.unit)}, worst {text(judged.worst, aim.unit)}"
    if judged.remark:
        figures += f"; {_cell(judged.remark)}"
    met = {True: "yes", False: "**no**", None: ""}[judged.is_met]
    broken = " (then failed)" if row["failure"] else ""
    return (
        f"| {aim.what} | {goal(judged)} | {figures} | {len(judged.values)}{broken} | {met} "
        f"| {beside} | {aim.before} |"
    )


def peers_table(rows: Rows) -> str | None:
    """Each peer beside bare and ours; None where none was measured."""
    found = {name: row for name, row in rows.items() if name.startswith("peer_")}
    if not found:
        return None
    lines = [
        "| tiny forward | protocol | requests/s, 16 connections | of bare's | p50 over bare, 1 connection |",
        "|---|---|---|---|---|",
    ]
    ours = rows.get("tiny", {})
    everyone = {**({"Eagleray": ours} if ours else {}), **found}
    for name, row in everyone.items():
        facts = row.get("facts", {})
        title = facts.get("title", name.removeprefix("peer_"))
        protocol = facts.get("protocol", "Open Inference v2, JSON" if name == "Eagleray" else "")
        if not row.get("repetitions"):
            why = row.get("not_available") or row.get("failure") or "nothing was told"
            lines.append(f"| {title} | {protocol} | {_cell(why.splitlines()[0])} | | |")
            continue
        one = rows.get("added", {}) if name == "Eagleray" else row
        cells = [
            _median(row, "ours_per_s", "/s"),
            _median(row, "ratio", "x"),
            _median(one, "added_p50_ms", "ms"),
        ]
        lines.append(f"| {title} | {protocol} | {' | '.join(cells)} |")
    return "\n".join(lines)


def profile_table(rows: Rows) -> str | None:
    """Where the processes of a tiny request spend their time; None where that was not looked at."""
    facts = rows.get("profile", {}).get("facts", {})
    parts = {name: facts[f"{name}_profile"] for name in ("gateway", "replica") if f"{name}_profile" in facts}
    if not parts:
        return None
    lines = ["| process | samples that end in | part |", "|---|---|---|"]
    for name, found in parts.items():
        lines += [f"| {name} | `{_cell(function)}` | {part:.1%} |" for part, function in found]
    return "\n".join(lines)


def disturbances(rows: Rows) -> str:
    """How much the load generator itself took in any block, and the machine's neighbours, in a sentence."""
    told = [row["blocks"] for row in rows.values() if row.get("blocks", {}).get("count")]
    generator = max((one["generator_cores"] for one in told), default=0.0)
    stolen = max((one["stolen"] for one in told), default=0.0)
    return (
        f"The load generator took up to {generator:.0%} of a core, neighbours up to {stolen:.0%} of all time."
    )


def _median(row: Mapping[str, Any], key: str, unit: str) -> str:
    import statistics

    values = values_of(row, key)
    return text(statistics.median(values), unit) if values else ""


def _cell(said: str) -> str:
    return said.replace("|", "/")[:240]


def goal(judged: Judged) -> str:
    """The aim's goal in words."""
    aim = judged.aim
    if aim.goal is None:
        return ""
    limit = aim.goal if judged.goal is None else judged.goal
    if limit == 0:
        return "0"
    return f"{'≥' if aim.at_least else '≤'} {limit if isinstance(limit, str) else text(limit, aim.unit)}"


def text(value: float, unit: str) -> str:
    """A figure with its unit."""
    if unit == "%":
        return f"{value:.1%}"
    if unit == "x":
        return f"{value:.2f}x"
    if unit == "/s":
        return f"{value:,.0f}/s"
    if unit == "us":
        return f"{value:.0f} µs"
    if unit == "ms":
        return f"{value:.2f} ms" if abs(value) < 100 else f"{value:.0f} ms"
    if unit == "s":
        return f"{value:.1f} s"
    return f"{value:g}"


def read(folder: Path) -> dict[str, Any]:
    """The rows that an earlier run wrote; none where there is no file."""
    return keeping.read_rows(folder / f"{NAME}.json")


def save(rows: Rows, about: Mapping[str, Any], folder: Path) -> None:
    """Write serving.json, whole, and serving.png into `folder`."""
    judged = [judge(aim, rows) for aim in AIMS if aim.row in rows]
    aims = [keeping.became(one, remark=one.remark) for one in judged]
    keeping.write_rows(rows, aims, about, folder / f"{NAME}.json")
    _draw([one for one in judged if one.values and one.goal], folder / f"{NAME}.png")


def _draw(judged: Sequence[Judged], path: Path) -> None:
    """One line per aim: what was measured over its goal, so that all share one axis."""
    if not judged:
        return
    title = "each repetition (dot), the median (diamond), peers (cross); met is blue"
    with picture.of_aims(path, [one.aim.what for one in judged], "measured over the goal", title) as axes:
        for at, one in enumerate(judged):
            assert one.goal is not None
            picture.dots(axes, at, one, over=one.goal, least=1e-2)
            axes.annotate("≥" if one.aim.at_least else "≤", (1.0, at), fontsize=8, ha="center", va="center")
        axes.axvline(1.0, color="0.8", zorder=0)
