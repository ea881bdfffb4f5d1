"""What people see of a search: plain lines for a job's log. Pure functions of the trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eagleray.specs import TuneSpec
from eagleray.tuning import Trial, best_of
from eagleray.tuning.search import describe, short
from eagleray.workflows.words import clock

MAX_ROWS = 16
"""Trials of one live table; those that run come first."""
_ORDER = ("running", "paused", "waiting", "interrupted", "finished", "stopped", "failed")


def columns(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """The rows as lines with aligned columns; what looks like a number stands to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_right = [all(_is_number(cell) for cell in column[1:]) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_right, strict=True)
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def _is_number(cell: str) -> bool:
    """Whether it is one, a fraction of two, a time, or the dash for none."""
    try:
        return cell in ("", "-") or all(float(part) >= 0 for part in cell.removesuffix(" s").split("/"))
    except ValueError:
        return False


def live(spec: TuneSpec, trials: Sequence[Trial], seconds: float) -> list[str]:
    """One block of the live table."""
    shown = sorted(trials, key=lambda trial: (_ORDER.index(trial.state), trial.number))[:MAX_ROWS]
    shown.sort(key=lambda trial: trial.number)
    lines = [headline(spec, trials, seconds), *columns([_header(spec), *(_row(spec, one) for one in shown)])]
    if len(trials) > len(shown):
        lines.append(f"  and {len(trials) - len(shown)} more")
    shared = sharing(trials)
    return [*lines, f"  nodes: {shared}"] if shared else lines


def headline(spec: TuneSpec, trials: Sequence[Trial], seconds: float) -> str:
    """Time, how many trials are where, and the best so far."""
    counts = [
        f"{count} {state}"
        for state in ("running", "paused", "waiting", "finished", "stopped", "failed", "interrupted")
        if (count := sum(trial.state == state for trial in trials))
    ]
    best = best_of(trials, spec.metric, spec.is_max_better)
    found = f"; best so far {_value(spec, best)} (trial {best.number})" if best else ""
    return f"{clock(seconds)}  trial {len(trials)} of {spec.num_trials}: {', '.join(counts)}{found}"


def sharing(trials: Sequence[Trial]) -> str:
    """Which trials run on which node, for instance "w1: 1 4   w2: 2 3"."""
    by_node: dict[str, list[str]] = {}
    for trial in trials:
        for node in trial.nodes if trial.state == "running" else ():
            by_node.setdefault(node, []).append(str(trial.number))
    return "   ".join(f"{node}: {' '.join(numbers)}" for node, numbers in sorted(by_node.items()))


def closing(spec: TuneSpec, trials: Sequence[Trial]) -> list[str]:
    """The table of all trials, the best first."""
    sign = -1 if spec.is_max_better else 1

    def rank(trial: Trial) -> tuple[bool, float, int]:
        value = trial.value_of(spec.metric)
        is_out = trial.state == "failed" or value is None
        return is_out, 0.0 if value is None else sign * value, trial.number

    header = [*_header(spec), "time"]
    rows = [
        [*_row(spec, trial), f"{trial.seconds:.1f} s"]
        for trial in sorted(trials, key=rank)
        if trial.state != "waiting"
    ]
    return columns([header, *rows]) + list(_reasons(trials))


def _reasons(trials: Sequence[Trial]) -> Iterator[str]:
    """One line per failed trial: why."""
    for trial in trials:
        if trial.state == "failed":
            yield f"  trial {trial.number} failed ({describe(trial.values)}): {trial.error}"


def _header(spec: TuneSpec) -> list[str]:
    return ["trial", "state", *spec.space, "step", spec.metric, "node"]


def _row(spec: TuneSpec, trial: Trial) -> list[str]:
    total = f"/{trial.total_steps}" if trial.total_steps else ""
    return [
        str(trial.number),
        trial.state,
        *(short(trial.values[path]) for path in spec.space),
        f"{trial.step}{total}" if trial.step else "-",
        _value(spec, trial),
        ",".join(trial.nodes) or "-",
    ]


def _value(spec: TuneSpec, trial: Trial) -> str:
    value = trial.value_of(spec.metric)
    return "-" if value is None else f"{value:.4f}"
