"""What an evaluation says, as a value; as JSON, and as lines for a log. `page.py` makes the HTML of it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagleray.evaluation.classification import Classification
from eagleray.evaluation.judgement import Judgement
from eagleray.evaluation.metrics import Metrics

_TITLES = {
    "accuracy": "Accuracy",
    "precision_macro": "Precision (macro)",
    "recall_macro": "Recall (macro)",
    "f1_macro": "F1 (macro)",
    "precision_weighted": "Precision (weighted)",
    "recall_weighted": "Recall (weighted)",
    "f1_weighted": "F1 (weighted)",
    "log_loss": "Log loss",
    "roc_auc": "ROC-AUC (one vs rest)",
    "top_3_accuracy": "Top-3 accuracy",
    "top_5_accuracy": "Top-5 accuracy",
    "calibration_error": "Calibration error",
    "mae": "Mean absolute error",
    "mse": "Mean squared error",
    "rmse": "Root mean squared error",
    "r2": "R²",
    "explained_variance": "Explained variance",
    "median_absolute_error": "Median absolute error",
    "max_error": "Largest error",
    "mean_residual": "Mean residual (bias)",
    "loss": "Loss (nats a token)",
    "perplexity": "Perplexity",
    "bits_per_byte": "Bits per byte",
}
_PART_NAMES = {
    "test": "the test part",
    "validation": "the validation part",
    "train": "the training part",
    "all": "all samples",
}


@dataclass(frozen=True)
class Picture:
    """One PNG file of a report."""

    name: str
    """Of the file, without .png."""
    title: str
    path: Path


@dataclass(frozen=True)
class Report:
    """All that an evaluation found."""

    evaluation_id: str
    created_at: float
    """Seconds since the epoch."""
    model: Mapping[str, str]
    """What was judged: rows of words, the first of them its name."""
    data: Mapping[str, str]
    """What it was judged on, likewise."""
    ids: Mapping[str, str]
    """For programs: run, version, package_url, package_digest, dataset_digest; those that there are."""
    part: str
    metrics: Metrics
    train: Metrics | None
    """On a sample of the training part; None where it was not measured."""
    judgement: Judgement
    warnings: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()

    @property
    def name(self) -> str:
        """Of the model."""
        return next(iter(self.model.values()))

    @property
    def part_name(self) -> str:
        """For instance "the test part"."""
        return _PART_NAMES[self.part]

    @property
    def created(self) -> str:
        """For instance "2026-01-31 12:00"."""
        return datetime.datetime.fromtimestamp(self.created_at).strftime("%Y-%m-%d %H:%M")

    def to_json(self) -> dict[str, Any]:
        """What report.json holds."""
        return {
            "evaluation": self.evaluation_id,
            "created_at": self.created_at,
            "ids": dict(self.ids),
            "model": dict(self.model),
            "data": dict(self.data),
            "part": self.part,
            "metrics": self.metrics.to_json(),
            "train": None if self.train is None else self.train.to_json(),
            "judgement": self.judgement.to_json(),
            "warnings": list(self.warnings),
            "pictures": [f"{picture.name}.png" for picture in self.pictures],
        }


def title(name: str) -> str:
    """What people call a metric."""
    return _TITLES.get(name, name.replace("_", " "))


def shown(name: str, value: float) -> str:
    """A metric's value for people: percent where it is a share, else four digits."""
    if name.endswith("accuracy") or name.startswith(("precision", "recall", "f1")):
        return f"{100 * value:.2f} %"
    if name in ("roc_auc", "calibration_error", "r2", "explained_variance"):
        return f"{value:.4f}"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3e}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"


def lines(report: Report) -> list[str]:
    """The report for a log or a terminal: a table, the classes, the judgement, the warnings."""
    found = [f"{report.name} on {report.part_name}: {report.metrics.num_samples:,} samples", ""]
    found += _table(report)
    if isinstance(report.metrics, Classification):
        found += ["", *_classes(report.metrics)]
    found += ["", f"{report.judgement.verdict}: {report.judgement.headline}"]
    found += [f"  {sentence}" for sentence in (*report.judgement.reasons, *report.judgement.advice)]
    found += [f"warning: {warning}" for warning in report.warnings]
    return found + [f"note: {note}" for note in report.metrics.notes]


def _table(report: Report) -> list[str]:
    train: Mapping[str, float] = {} if report.train is None else report.train.values
    rows = [
        (title(name), shown(name, value), shown(name, train[name]) if name in train else "")
        for name, value in report.metrics.values.items()
    ]
    header = ("", report.part if report.part != "all" else "all samples", "train" if train else "")
    return _aligned([header, *rows])


def _classes(metrics: Classification, most: int = 20) -> list[str]:
    """Scores by class; of many classes those with the lowest F1."""
    known = [scores for scores in metrics.per_class if scores.support]
    chosen = known if len(known) <= most else sorted(known, key=lambda scores: scores.f1)[:most]
    header = ("class", "precision", "recall", "F1", "samples")
    rows = [
        (_one_line(s.label), f"{s.precision:.3f}", f"{s.recall:.3f}", f"{s.f1:.3f}", f"{s.support}")
        for s in chosen
    ]
    left_out = [] if chosen is known else [f"  … and {len(known) - most} classes with a higher F1"]
    return [*_aligned([header, *rows]), *left_out]


def _one_line(label: str, most: int = 40) -> str:
    text = " ".join(label.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows with the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            ["", row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]
