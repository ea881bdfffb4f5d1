"""The pictures of a report, one PNG file each; sized so that their text can be read on a phone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eagleray.evaluation.canvas import figure
from eagleray.evaluation.classification import Classification
from eagleray.evaluation.curves import plot_curves
from eagleray.evaluation.language import Language
from eagleray.evaluation.metrics import Array, Metrics
from eagleray.evaluation.report import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 6.0
_BLUE, _ORANGE, _GREEN, _GREY = "#2f6fb3", "#d9822b", "#3a9a5b", "#8a8a8a"
_MAX_NUMBERED, _MAX_SHOWN = 25, 60
"""Classes: up to the first the matrix has numbers in it, up to the second all classes are shown."""
_MAX_BARS, _MAX_ROC = 30, 10
_MAX_POINTS = 5000
_MAX_LABEL = 18


def draw(
    metrics: Metrics,
    folder: Path,
    *,
    targets: Array | None = None,
    outputs: Array | None = None,
    history: Sequence[Mapping[str, float]] = (),
) -> tuple[Picture, ...]:
    """Draw what belongs to a report into `folder` (which exists); returns the pictures in their order.

    Args:
        metrics: What was found.
        folder: Gets one PNG file for each picture.
        targets: Of the samples [N, ...]; not needed for tokens.
        outputs: Class probabilities [N, C], or values [N, V]; not needed for tokens.
        history: Of the run that made the model; empty leaves the curve out.
    """
    drawn: list[Picture] = []

    def add(name: str, title: str, plot: Callable[[Path], None]) -> None:
        path = folder / f"{name}.png"
        plot(path)
        drawn.append(Picture(name, title, path))

    if isinstance(metrics, Classification):
        assert targets is not None
        assert outputs is not None
        add("confusion-matrix", "Confusion matrix", lambda path: plot_confusion(metrics, path))
        add("classes", "Scores by class", lambda path: plot_per_class(metrics, path))
        if "roc_auc" in metrics.values:
            add("roc", "ROC curves", lambda path: plot_roc(metrics, targets, outputs, path))
        add("calibration", "Calibration", lambda path: plot_calibration(metrics, path))
    elif isinstance(metrics, Language):
        add("positions", "Loss by place in the window", lambda path: plot_positions(metrics, path))
    else:
        assert targets is not None
        assert outputs is not None
        true, found = targets.ravel(), outputs.ravel()
        add("predicted", "Predicted over true values", lambda path: plot_predicted(true, found, path))
        add("residuals", "Residuals", lambda path: plot_residuals(found - true, path))
    if history:
        size, title = (_WIDTH, 5.2), "The run that made the model"
        add("curves", title, lambda path: plot_curves(history, path, title=title, size_inches=size))
    return tuple(drawn)


def plot_confusion(metrics: Classification, path: Path) -> None:
    """The confusion matrix; colours are shares of the true class (their root, to show rare mistakes)."""
    confusion_CC, labels, shown = metrics.confusion_CC, metrics.labels, "all classes"
    if len(labels) > _MAX_SHOWN:
        wrong_CC = confusion_CC - np.diag(np.diag(confusion_CC))
        chosen = np.sort(np.argsort(-(wrong_CC.sum(axis=0) + wrong_CC.sum(axis=1)))[:_MAX_SHOWN])
        confusion_CC, labels = confusion_CC[np.ix_(chosen, chosen)], [labels[number] for number in chosen]
        shown = f"the {_MAX_SHOWN} classes with most mistakes, of {len(metrics.labels)}"
    size = len(labels)
    shares_CC = confusion_CC / np.maximum(confusion_CC.sum(axis=1, keepdims=True), 1)
    side = max(_WIDTH, min(0.42 * size, 12))
    with _axes(path, (side, side * 0.94)) as axes:
        axes.imshow(np.sqrt(shares_CC), cmap="Blues", vmin=0, vmax=1)
        font = 9.5 if size <= 12 else 8 if size <= _MAX_NUMBERED else 6
        axes.set_xticks(range(size), _short(labels), fontsize=font, rotation=_rotation(labels))
        axes.set_yticks(range(size), _short(labels), fontsize=font)
        axes.tick_params(length=0)
        if size <= _MAX_NUMBERED:
            _numbers(axes, confusion_CC, shares_CC, font)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(f"Confusion matrix ({shown})", fontsize=11)
        axes.spines[:].set_visible(False)


def _numbers(axes: Axes, confusion_CC: Array, shares_CC: Array, font: float) -> None:
    for (row, column), count in np.ndenumerate(confusion_CC):
        if count:
            colour = "white" if shares_CC[row, column] > 0.42 else "#1b3a57"
            axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=font)


def plot_per_class(metrics: Classification, path: Path) -> None:
    """Precision, recall and F1 of each class as bars; of many classes those with the lowest F1."""
    known = [scores for scores in metrics.per_class if scores.support]
    chosen = known
    if len(known) > _MAX_BARS:
        chosen = sorted(known, key=lambda scores: scores.f1)[:_MAX_BARS]
    place = np.arange(len(chosen))
    with _axes(path, (_WIDTH, max(2.6, 0.42 * len(chosen) + 1.1))) as axes:
        for offset, name, colour in (
            (-0.26, "precision", _BLUE),
            (0, "recall", _ORANGE),
            (0.26, "f1", _GREEN),
        ):
            values = [getattr(scores, name) for scores in chosen]
            axes.barh(place + offset, values, height=0.24, color=colour, label=name.replace("f1", "F1"))
        axes.set_yticks(place, [f"{_cut(s.label)} ({s.support})" for s in chosen])
        axes.set_ylim(len(chosen) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.grid(visible=True, axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        which = "" if chosen is known else f", the {_MAX_BARS} lowest of {len(known)}"
        axes.set_title(f"By class (samples){which}", fontsize=11)
        axes.figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def plot_roc(metrics: Classification, targets_N: Array, probabilities_NC: Array, path: Path) -> None:
    """ROC curves of each class against the rest; of many classes those with the smallest area."""
    from sklearn.metrics import roc_curve

    areas = {number: s.roc_auc for number, s in enumerate(metrics.per_class) if s.roc_auc is not None}
    is_binary = len(metrics.labels) == 2
    chosen = [1] if is_binary and 1 in areas else sorted(areas, key=lambda number: areas[number])[:_MAX_ROC]
    with _axes(path, (_WIDTH, 4.8)) as axes:
        axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
        for number in sorted(chosen):
            wrong, right, _ = roc_curve(targets_N == number, probabilities_NC[:, number])
            label = f"{_cut(metrics.labels[number])}: {areas[number]:.3f}"
            axes.plot(wrong, right, linewidth=1.5, label=label)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.02)
        axes.grid(visible=True, alpha=0.3)
        which = (
            f", the {_MAX_ROC} smallest of {len(areas)}" if not is_binary and len(areas) > _MAX_ROC else ""
        )
        axes.set_title(f"ROC, each class against the rest{which}", fontsize=11)
        axes.legend(loc="lower right", fontsize=8.5, title="area", title_fontsize=8.5, framealpha=0.85)


def plot_calibration(metrics: Classification, path: Path) -> None:
    """How often the model is right, by the probability that it gave its answer."""
    bins = metrics.calibration
    with _axes(path, (_WIDTH, 4.6)) as axes:
        axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="as sure as right")
        confidence, accuracy = [part.confidence for part in bins], [part.accuracy for part in bins]
        axes.plot(confidence, accuracy, color=_BLUE, linewidth=1.4)
        sizes = [30 + 270 * part.num_samples / metrics.num_samples for part in bins]
        axes.scatter(
            confidence, accuracy, s=sizes, color=_BLUE, alpha=0.75, label="the model (size: samples)"
        )
        axes.set_xlabel("probability of the answer")
        axes.set_ylabel("share that is right")
        axes.set_xlim(-0.02, 1.04)
        axes.set_ylim(-0.02, 1.06)
        axes.grid(visible=True, alpha=0.3)
        axes.set_title(f"Calibration (error {metrics.values['calibration_error']:.3f})", fontsize=11)
        axes.legend(loc="upper left", fontsize=9, framealpha=0.85, markerscale=0.5)


def plot_predicted(targets_N: Array, values_N: Array, path: Path) -> None:
    """Predicted over true values, and the line on which they would be equal."""
    step = -(-len(targets_N) // _MAX_POINTS)
    low, high = (
        float(edge) for edge in (min(targets_N.min(), values_N.min()), max(targets_N.max(), values_N.max()))
    )
    margin = 0.03 * (high - low) or 1.0
    with _axes(path, (_WIDTH, 5.2)) as axes:
        ends = [low - margin, high + margin]
        axes.plot(ends, ends, color=_GREY, linestyle="--", linewidth=1.2)
        axes.scatter(targets_N[::step], values_N[::step], s=14, color=_BLUE, alpha=0.55, linewidths=0)
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.set_aspect("equal")
        axes.set_xlabel("true")
        axes.set_ylabel("predicted")
        axes.grid(visible=True, alpha=0.3)
        every = f" (every {step}th sample)" if step > 1 else ""
        axes.set_title(f"Predicted over true{every}", fontsize=11)


def plot_residuals(residuals_N: Array, path: Path) -> None:
    """A histogram of predicted - true; the rarest 2 % at the ends share the outermost bars."""
    low, high = (float(edge) for edge in np.quantile(residuals_N, (0.01, 0.99)))
    largest = max(abs(low), abs(high))
    if high - low <= 1e-6 * largest:  # as good as equal: no room for bars between them
        low, high = low - (largest or 1.0) / 2, high + (largest or 1.0) / 2
    with _axes(path, (_WIDTH, 3.9)) as axes:
        bins = int(np.clip(np.sqrt(len(residuals_N)), 10, 50))
        axes.hist(np.clip(residuals_N, low, high), bins=bins, range=(low, high), color=_BLUE, alpha=0.85)
        axes.axvline(0, color=_GREY, linestyle="--", linewidth=1.2)
        mean = float(residuals_N.mean())
        axes.axvline(mean, color=_ORANGE, linewidth=1.6, label=f"mean {mean:.3g}")
        axes.set_xlabel("predicted - true")
        axes.set_ylabel("samples")
        axes.grid(visible=True, axis="y", alpha=0.3)
        axes.set_title("Residuals", fontsize=11)
        axes.legend(fontsize=9, framealpha=0.85)


def plot_positions(metrics: Language, path: Path) -> None:
    """The loss at each place in the window: how much the model makes of what came before."""
    losses = np.array([np.nan if loss is None else loss for loss in metrics.loss_by_position])
    with _axes(path, (_WIDTH, 3.9)) as axes:
        marker = "o" if len(losses) <= 40 else ""
        axes.plot(
            np.arange(1, len(losses) + 1), losses, color=_BLUE, linewidth=1.5, marker=marker, markersize=3.5
        )
        axes.axhline(metrics.values["loss"], color=_ORANGE, linewidth=1.2, linestyle="--", label="mean")
        axes.axhline(
            metrics.loss.baseline, color=_GREY, linewidth=1.2, linestyle=":", label="token frequencies"
        )
        axes.set_xlabel("place in the window")
        axes.set_ylabel("loss (nats a token)")
        axes.grid(visible=True, alpha=0.3)
        axes.set_title("Loss by place in the window", fontsize=11)
        axes.legend(fontsize=9, framealpha=0.85)


@contextlib.contextmanager
def _axes(path: Path, size_inches: tuple[float, float]) -> Iterator[Axes]:
    """Axes to draw on; the PNG file is written at the end."""
    with figure(path, size_inches, dpi=130) as drawn:
        axes = drawn.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        yield axes


def _short(labels: Sequence[str]) -> list[str]:
    return [_cut(label) for label in labels]


def _cut(label: str) -> str:
    one_line = " ".join(label.split()) or "(empty)"
    return one_line if len(one_line) <= _MAX_LABEL else one_line[: _MAX_LABEL - 1] + "…"


def _rotation(labels: Sequence[str]) -> float:
    return 0 if max(len(label) for label in labels) <= 3 else 90
