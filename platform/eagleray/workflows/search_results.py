"""What a search leaves behind: the table of all trials, the optimisation history, the winner's curves."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eagleray.evaluation.curves import plot_curves
from eagleray.evaluation.searches import TrialCurve, plot_search
from eagleray.tuning import Trial
from eagleray.tuning.record import best_so_far
from eagleray.workflows.monitor import read_history
from eagleray.workflows.run import runs
from eagleray.workflows.search import Search


def publish(search: Search, trials: Sequence[Trial], report: Mapping[str, Any], monitor: Any) -> list[str]:
    """Write everything into the search's folder and to MLflow; returns what MLflow does not have."""
    spec, folder = search.spec, search.folder
    folder.write_bytes("trials.parquet", to_parquet([monitor.row(trial) for trial in trials]))
    tracker = monitor.parent
    with TemporaryDirectory(prefix="eagleray-") as scratch:
        picture = Path(scratch, "history.png")
        winner = report["best"]["trial"] if report["best"] else None
        best = best_so_far(trials, spec.metric, spec.is_max_better)
        plot_search(
            [curve_of(trial, spec.metric) for trial in trials],
            best,
            picture,
            title=search.search_id,
            metric=spec.metric,
            winner=winner,
        )
        folder.upload(picture, "history.png")
        tracker.artifact(picture)
        for name in ("spec.json", "report.json", "trials.parquet"):
            path = Path(scratch, name)
            path.write_bytes(folder.read_bytes(name))
            tracker.artifact(path)
        if report["best"]:
            draw_winner(report["best"]["run_id"], Path(scratch))
        for number, value in best:
            tracker.log({f"best_{spec.metric}": value}, number)
        status = {"FINISHED": "FINISHED", "STOPPED": "KILLED"}.get(report["status"], "FAILED")
        return [*monitor.close(), *tracker.finish(status)]


def curve_of(trial: Trial, metric: str) -> TrialCurve:
    """The trial as the picture shows it."""
    points = [(one["step"], one[metric]) for one in trial.evaluations if metric in one]
    return TrialCurve(trial.number, trial.state, points)


def draw_winner(run_id: str, scratch: Path) -> None:
    """Give the winner's run its picture, as any run has one."""
    run, curves = runs().child(run_id), scratch / "curves.png"
    plot_curves(read_history(run), curves, title=run_id)
    run.upload(curves, "curves.png")


def to_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """One row per trial; a list among the values is JSON text, for other trials may have a number there."""
    import pandas as pd

    plain = [
        {
            name: json.dumps(value) if isinstance(value, list | tuple | dict) else value
            for name, value in row.items()
        }
        for row in rows
    ]
    columns = {name: [row.get(name) for row in plain] for row in plain for name in row}
    for name, values in columns.items():
        kinds = {type(value) for value in values if value is not None}
        if len(kinds) > 1 and kinds != {int, float}:
            columns[name] = [None if value is None else str(value) for value in values]
    frame = pd.DataFrame(columns)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()
