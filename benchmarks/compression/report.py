"""What is said and kept: progress, tables in markdown, the JSON, the picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arithmetic
import rig  # noqa: F401  first: it says where the rest is
import torch
from cells import COMPUTE, DENSE, Measured, Row
from kit import keeping, picture
from schemes import NUM_PARAMETERS, SHAPES

NAME = "compression"
"""Of its files."""
TARGETS: dict[tuple[str, str], tuple[float, float]] = {
    ("int8", "100 Mbit/s"): (1.390, 0.26),
    ("int8", "1 Gbit/s"): (0.220, 0.37),
    ("int4", "100 Mbit/s"): (0.720, 0.135),
    ("int4", "1 Gbit/s"): (0.180, 0.30),
    ("topk", "100 Mbit/s"): (0.220, 0.042),
    ("topk", "1 Gbit/s"): (0.130, 0.22),
    ("powersgd", "100 Mbit/s"): (0.180, 0.034),
    ("powersgd", "1 Gbit/s"): (0.160, 0.27),
}
"""Scheme and link at n = 4: seconds per step on an idle machine, and the ratio to dense, which binds."""
TOPK_BYTES = 1.25e6
TO_DENSE, TO_BEST = 1.03, 1.05
WITHIN = 0.02


def summary(row: Row, measured: Measured) -> dict[str, Any]:
    """The figures of one row. Times in ms; the floor is of this cell's compute only and this row's bytes."""
    cell = measured.cell
    if not row.durations:
        return {"scheme": row.name, "family": row.family, "failure": row.failure or "not reached"}
    low, median, high = arithmetic.quartiles(row.durations)
    sent = max(0.0, statistics.median(row.sent) - measured.idle_bytes_per_s * median)
    formula = arithmetic.formula_bytes(row.formula, SHAPES, cell.n)
    compute = measured.rows.get(COMPUTE)
    floor = arithmetic.floor_s(
        statistics.median(compute.durations) if compute and compute.durations else 0.0, sent, cell.rate_mbit
    )
    ratios = row.ratios
    return {
        "scheme": row.name,
        "family": row.family,
        "failure": row.failure,
        "ms": median * 1e3,
        "ms_quartiles": [low * 1e3, high * 1e3],
        "steps": len(row.durations),
        "ratio": statistics.median(ratios) if ratios else None,
        "ratio_upper": arithmetic.upper_bound(ratios) if ratios else None,
        "sent_bytes": sent,
        "formula_bytes": None if formula != formula else formula,
        "floor_ms": floor * 1e3,
        "fraction_of_floor": floor / median,
        "peak_mib": row.facts.get("peak_mib"),
        "replicas_equal": row.are_replicas_equal,
        "facts": row.facts,
    }


def table(measured: Measured) -> str:
    """One cell's table, markdown."""
    cell = measured.cell
    load = ", ".join(f"{one:.1f}" for one in measured.load)
    lines = [
        f"\n### {cell.n} workers, {cell.link} (load average before: {load})\n",
        "| scheme | ms per step (quartiles) | steps | ratio to dense (95 % below) | MB sent | over formula "
        "| of the floor | peak MiB | equal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in measured.rows.values():
        s = summary(row, measured)
        name = f"**{s['scheme']}**" if s["family"] == "ours" else s["scheme"]
        if "ms" not in s or (s["failure"] and s["steps"] < 3):
            lines.append(f"| {name} | fails: {s['failure']} | | | | | | | |")
            continue
        low, high = s["ms_quartiles"]
        ratio = "" if s["ratio"] is None else f"{s['ratio']:.3f} ({s['ratio_upper']:.3f})"
        expected = s["formula_bytes"]
        over = f"{s['sent_bytes'] / expected - 1:+.1%}" if expected else ""
        equal = {True: "yes", False: "NO", None: ""}[s["replicas_equal"]]
        failed = f" (then failed: {s['failure']})" if s["failure"] else ""
        lines.append(
            f"| {name}{failed} | {s['ms']:.0f} ({low:.0f}–{high:.0f}) | {s['steps']} | {ratio} "
            f"| {s['sent_bytes'] / 1e6:.2f} | {over} | {s['fraction_of_floor']:.0%} "
            f"| {s['peak_mib']:.0f} | {equal} |"
        )
    return "\n".join(lines)


def auto_table(all_measured: Sequence[Measured]) -> str | None:
    """`auto` on every link, markdown; None where it was not measured."""
    lines = [
        "\n### auto: ratio of paired blocks, median (upper 95 % bound)\n",
        f"| workers, link | to dense (bound ≤ {TO_DENSE}) | to the best manual (bound ≤ {TO_BEST}) "
        "| best | choice |",
        "|---|---|---|---|---|",
    ]
    for measured in all_measured:
        auto = measured.auto
        if "to_dense" in auto:
            dense, best = (
                f"{auto[k]['median']:.3f} ({auto[k]['upper']:.3f})" for k in ("to_dense", "to_best")
            )
            chosen = auto["choice"]["kind"] if auto["choice"] else ""
            lines.append(f"| {measured.cell} | {dense} | {best} | {auto['best']} | {chosen} |")
        elif auto:
            lines.append(f"| {measured.cell} | fails: {auto['failure']} | | | |")
    return "\n".join(lines) if len(lines) > 4 else None


def targets(all_measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Each aim that this run can judge: what, its limit, the value, whether it holds."""
    found = []

    def judge(what: str, limit: float, value: float, *, at_least: bool = False) -> None:
        holds = value >= limit if at_least else value <= limit
        found.append({"what": what, "limit": limit, "value": value, "holds": holds})

    for measured in all_measured:
        rows = {name: summary(row, measured) for name, row in measured.rows.items()}
        for name, s in rows.items():
            aim = TARGETS.get((name, measured.cell.link))
            if aim and measured.cell.n == 4 and s.get("ratio") is not None:
                judge(
                    f"{name}, {measured.cell}: ratio to dense (aim in ms: {aim[0] * 1e3:.0f})",
                    aim[1],
                    s["ratio"],
                )
            if name in ("int8", "int4") and s.get("formula_bytes"):
                off = abs(s["sent_bytes"] / s["formula_bytes"] - 1)
                judge(f"{name}, {measured.cell}: bytes off the formula", WITHIN, off)
            if name == "topk" and "ms" in s and measured.cell.n == 4:
                judge(f"topk, {measured.cell}: bytes", TOPK_BYTES, s["sent_bytes"])
            if name == "int8" and "ms" in s and (measured.cell.n, measured.cell.link) == (4, "100 Mbit/s"):
                judge(f"int8, {measured.cell}: of its floor", 0.90, s["fraction_of_floor"], at_least=True)
        if "to_dense" in measured.auto:
            judge(f"auto, {measured.cell}: bound to dense", TO_DENSE, measured.auto["to_dense"]["upper"])
            judge(f"auto, {measured.cell}: bound to best", TO_BEST, measured.auto["to_best"]["upper"])
    return found


def targets_table(found: Sequence[dict[str, Any]]) -> str:
    """The aims, markdown."""
    lines = ["\n### Aims\n", "| aim | limit | measured | holds |", "|---|---|---|---|"]
    for one in found:
        limit, value = (
            f"{one[k]:.3g}" if one[k] < 1e4 else f"{one[k] / 1e6:.2f} MB" for k in ("limit", "value")
        )
        lines.append(f"| {one['what']} | {limit} | {value} | {'yes' if one['holds'] else 'NO'} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What this ran on."""
    return {**keeping.machine(), "torch": torch.__version__}


def save(all_measured: Sequence[Measured], about: dict[str, Any], folder: Path) -> None:
    """Write compression.json and compression.png into `folder`."""
    cells = [
        {
            "n": one.cell.n,
            "link": one.cell.link,
            "rate_mbit": one.cell.rate_mbit,
            "load_average_before": one.load,
            "idle_bytes_per_s": one.idle_bytes_per_s,
            "seconds": one.seconds,
            "rows": [summary(row, one) for row in one.rows.values()],
            "auto": one.auto,
        }
        for one in all_measured
    ]
    found = {**about, "machine": machine(), "parameters": NUM_PARAMETERS}
    found |= {"cells": cells, "aims": targets(all_measured)}
    keeping.write(found, folder / f"{NAME}.json")
    drawn = [one for one in all_measured if DENSE in one.rows and COMPUTE in one.rows]
    _draw(drawn, folder / f"{NAME}.png")


def _draw(all_measured: Sequence[Measured], path: Path) -> None:
    """One panel per cell: each scheme's step time as a dot, and a line from its floor to it."""
    if not all_measured:
        return
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    counts = sorted({one.cell.n for one in all_measured})
    links = list(dict.fromkeys(one.cell.link for one in all_measured))
    num_rows = max(len(one.rows) for one in all_measured)
    size = (4.6 * len(links) + 1, (0.24 * num_rows + 1) * len(counts))
    with picture.drawn(path, *size) as figure:
        panels = figure.subplots(len(counts), len(links), squeeze=False)
        colours = {"floor": "0.6", "torch": "tab:orange", "ours": "tab:blue"}
        for one in all_measured:
            axes = panels[counts.index(one.cell.n)][links.index(one.cell.link)]
            for at, row in enumerate(one.rows.values()):
                s = summary(row, one)
                if "ms" not in s:
                    where = axes.get_yaxis_transform()
                    axes.text(0.02, at, "fails", transform=where, fontsize=7, va="center")
                    continue
                axes.plot([s["floor_ms"], s["ms"]], [at, at], color="0.8", zorder=1)
                axes.plot(s["floor_ms"], at, "|", color="black", markersize=9)
                axes.plot(s["ms"], at, "o", color=colours[s["family"]], markersize=5)
            picture.frame(axes, list(one.rows), "ms per step")
            axes.set_title(f"{one.cell.n} workers, {one.cell.link}")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())  # by itself it writes 3 x 10^1 over 4 x 10^1
        figure.suptitle(
            "ms per step (dot) and the physical floor of what it computes and sends (tick)", fontsize=9
        )
