"""The Grafana dashboards: panels name metrics of the table, the table gives units and meanings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from eagleray import metrics

# What Ray puts in front of every name. Ray 2.60 exports a counter named `x_total` as `ray_x_total` (the
# suffix is not doubled; a counter without it would get it): tests/integration/test_metrics_export.py.
PREFIX = "ray_"
TRAINING_UID = "eagleray-training"
SCHEMA_VERSION = 42  # of Grafana's dashboard model, the newest that the vendored schema describes

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_UNITS = {"seconds": "s", "bytes": "bytes", "samples": "suffix: samples", "ratio": "percentunit"}
_NUM_COLUMNS = 24


@dataclass(frozen=True)
class Query:
    """One line of a panel: a PromQL expression over metrics of the table, and what the legend calls it."""

    expression: str
    legend: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Panel:
    """One panel. `unit` is a Grafana unit id; width and height are cells of a grid of 24 columns."""

    title: str
    kind: Literal["timeseries", "stat"]
    queries: tuple[Query, ...]
    unit: str
    width: int = 12
    height: int = 8
    description: str = ""


def gauge(name: str, legend: str = "{{run}}") -> Query:
    """The newest value of a gauge, one line per run (and whatever else it has as labels).

    `max by (run)`: for up to two report intervals a worker that ended and its successor are both exported.
    """
    labels = ", ".join(_row(name, "gauge").labels)
    return Query(f"max by ({labels}) ({_selector(name)})", legend, (name,))


def rate(name: str, legend: str = "{{run}}") -> Query:
    """A counter's rise per second, summed over the processes that export it, one line per run."""
    return Query(_rate(name), legend, (name,))


def total(name: str, legend: str = "{{run}}") -> Query:
    """A counter's value, summed over the processes of a run, those that ended within the range included.

    Not `increase()`: a counter that appears at 1, as that of recoveries, has no rise that Prometheus saw.
    """
    _row(name, "counter")
    return Query(f"sum by (run) (max_over_time({_selector(name)}[$__range]))", legend, (name,))


def quotient(above: str, below: str, legend: str = "{{run}}") -> Query:
    """The rate of one counter over the rate of another, one line per run."""
    return Query(f"{_rate(above)} / ({_rate(below)} > 0)", legend, (above, below))


def training_panels() -> tuple[Panel, ...]:
    """The panels of "Eagleray / Training", in reading order."""
    train = "eagleray_train_"
    sent, uncompressed = f"{train}sent_bytes_total", f"{train}uncompressed_bytes_total"
    return (
        _stat("World size", gauge(f"{train}workers")),
        _stat("Nodes", gauge(f"{train}nodes")),
        _stat("Recoveries", total(f"{train}recoveries_total")),
        _stat("Redone steps", total(f"{train}redone_steps_total")),
        _stat("Skipped steps", total(f"{train}skipped_steps_total")),
        _stat("Goodput", gauge("eagleray_goodput_ratio"), unit="percentunit"),
        _lines(
            "Loss",
            gauge(f"{train}loss", "{{run}} training"),
            gauge(f"{train}validation_loss", "{{run}} validation"),
        ),
        _lines("Validation accuracy", gauge(f"{train}validation_accuracy")),
        _lines("Throughput", gauge(f"{train}samples_per_second"), unit="suffix: samples/s"),
        _lines("Step time", gauge(f"{train}step_seconds")),
        _lines(
            "Gradient bytes per second",
            rate(sent, "{{run}} sent"),
            rate(f"{train}payload_bytes_total", "{{run}} payload"),
            rate(uncompressed, "{{run}} uncompressed"),
            unit="Bps",
        ),
        _lines(
            "Compression ratio",
            quotient(uncompressed, sent),
            unit="suffix:x",
            description="Uncompressed bytes over sent bytes; 1 where nothing is compressed.",
        ),
        _lines("Relative error of compression", gauge(f"{train}relative_error")),
        _lines(
            "Gradient engine",
            rate(f"{train}codec_seconds_total", "{{run}} codec"),
            rate(f"{train}exchange_seconds_total", "{{run}} network"),
            unit="percentunit",
            description="Share of the time.",
        ),
        _lines(
            "Other bytes per second",
            rate(f"{train}probe_bytes_total", "{{run}} measuring the network"),
            rate(f"{train}state_bytes_total", "{{run}} checkpoints"),
            unit="Bps",
            description="What compression sends besides gradients.",
        ),
        _lines("Link use per worker", gauge(f"{train}link_bytes_per_second"), unit="Bps"),
        *_bucket_panels(),
        _lines(
            "World size and nodes",
            gauge(f"{train}workers", "{{run}} workers"),
            gauge(f"{train}nodes", "{{run}} nodes"),
        ),
        _lines(
            "Goodput over time",
            gauge("eagleray_goodput_ratio"),
            description="1 less what was lost, evaluations, and what comes after the last step.",
        ),
        _lines(
            "Lost residuals",
            total(f"{train}lost_residuals_total"),
            description="Workers that were lost while compression still owed something of theirs.",
        ),
        _lines("Lost time", gauge("eagleray_lost_seconds", "{{run}} {{cause}}")),
        _lines("Checkpoint time", gauge(f"{train}checkpoint_seconds")),
        _lines("Steps per second", rate(f"{train}steps_total"), unit="suffix: steps/s"),
        _lines("Learning rate", gauge(f"{train}learning_rate")),
    )


def _bucket_panels() -> list[Panel]:
    """What compression does with each of DDP's buckets."""
    name, legend = "eagleray_train_bucket_", "{{run}} {{bucket}}"
    said = "Of each of DDP's buckets, in the order of the backward pass; told at each checkpoint."
    return [
        _lines(
            "Buckets: bytes of a step",
            gauge(f"{name}sent_bytes", f"{legend} sent"),
            gauge(f"{name}payload_bytes", f"{legend} payload"),
            description=said,
        ),
        _lines(
            "Buckets: compression ratio", gauge(f"{name}ratio", legend), unit="suffix:x", description=said
        ),
        _lines("Buckets: relative error", gauge(f"{name}relative_error", legend), description=said),
        _lines(
            "Buckets: engine's time of a step",
            gauge(f"{name}codec_seconds", f"{legend} codec"),
            gauge(f"{name}exchange_seconds", f"{legend} network"),
            description=said,
        ),
        _lines(
            "Buckets: link use", gauge(f"{name}link_bytes_per_second", legend), unit="Bps", description=said
        ),
    ]


def training_dashboard(datasource: tuple[str, str] | None = None) -> dict[str, Any]:
    """The dashboard "Eagleray / Training" as Grafana's JSON model, without id and version.

    Args:
        datasource: (name, uid) of the Prometheus data source chosen at first; None leaves the choice to
            Grafana, which takes its default one. The dashboard's variable lets the reader choose another.
    """
    return {
        "uid": TRAINING_UID,
        "title": "Eagleray / Training",
        "description": "Training runs of Eagleray. Generated: the next publish overwrites edits.",
        "tags": ["eagleray", "generated"],
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "schemaVersion": SCHEMA_VERSION,
        "annotations": {"list": []},
        "templating": {"list": [_datasource_variable(datasource), _run_variable()]},
        "panels": _laid_out(training_panels()),
    }


def _lines(title: str, *queries: Query, unit: str = "", description: str = "") -> Panel:
    return Panel(title, "timeseries", queries, unit or _unit(queries[0]), description=description)


def _stat(title: str, query: Query, *, unit: str = "short") -> Panel:
    return Panel(title, "stat", (query,), unit, width=4, height=4)


def _unit(query: Query) -> str:
    return _UNITS.get(metrics.BY_NAME[query.names[0]].unit, "short")


def _row(name: str, kind: str) -> metrics.Metric:
    row = metrics.BY_NAME[name]
    assert row.kind == kind, f"{name} is a {row.kind}, not a {kind}"
    return row


def _selector(name: str) -> str:
    return f'{PREFIX}{name}{{run=~"$run"}}'


def _rate(name: str) -> str:
    _row(name, "counter")
    return f"sum by (run) (rate({_selector(name)}[$__rate_interval]))"


def _datasource_variable(chosen: tuple[str, str] | None) -> dict[str, Any]:
    variable: dict[str, Any] = {"type": "datasource", "name": "datasource", "query": "prometheus"}
    variable["label"] = "Data source"
    if chosen is not None:
        variable["current"] = {"selected": True, "text": chosen[0], "value": chosen[1]}
    return variable


def _run_variable() -> dict[str, Any]:
    query = f"label_values({PREFIX}eagleray_train_steps_total, run)"
    return {
        "type": "query",
        "name": "run",
        "label": "Run",
        "datasource": _SOURCE,
        "query": query,
        "definition": query,
        "refresh": 2,  # when the time range changes, so that runs that start later show up
        "sort": 2,  # alphabetical, descending: within a spec the newest run comes first
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _laid_out(panels: tuple[Panel, ...]) -> list[dict[str, Any]]:
    """Grafana's panels, left to right, a new row where the next one does not fit."""
    placed: list[dict[str, Any]] = []
    x = y = row_height = 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > _NUM_COLUMNS:
            x, y, row_height = 0, y + row_height, 0
        grid = {"h": panel.height, "w": panel.width, "x": x, "y": y}
        placed.append(_panel(panel, number, grid))
        x, row_height = x + panel.width, max(row_height, panel.height)
    return placed


def _panel(panel: Panel, number: int, grid: dict[str, int]) -> dict[str, Any]:
    names = dict.fromkeys(name for query in panel.queries for name in query.names)
    meanings = [panel.description, *(metrics.BY_NAME[name].meaning for name in names)]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": " ".join(text for text in meanings if text),
        "datasource": _SOURCE,
        "gridPos": grid,
        "fieldConfig": {"defaults": _field_defaults(panel), "overrides": []},
        "options": _options(panel.kind),
        "targets": [_target(query, chr(ord("A") + i)) for i, query in enumerate(panel.queries)],
    }


def _field_defaults(panel: Panel) -> dict[str, Any]:
    custom = {"lineWidth": 2, "showPoints": "auto", "spanNulls": False} if panel.kind == "timeseries" else {}
    return {"unit": panel.unit, "color": {"mode": "palette-classic"}, "custom": custom}


def _options(kind: str) -> dict[str, Any]:
    if kind == "stat":
        reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {"reduceOptions": reduce, "colorMode": "value", "graphMode": "none", "textMode": "auto"}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def _target(query: Query, letter: str) -> dict[str, Any]:
    return {
        "refId": letter,
        "datasource": _SOURCE,
        "editorMode": "code",
        "expr": query.expression,
        "legendFormat": query.legend,
        "range": True,
    }
