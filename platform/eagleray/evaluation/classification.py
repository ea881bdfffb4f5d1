"""Metrics of a classifier, by scikit-learn.

Names: N samples, C classes, K bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eagleray.evaluation.metrics import Array, Loss, Metrics, entropy, finite

_TOP_K = (3, 5)
_MAX_MATRIX_CLASSES = 200
"""A confusion matrix with more rows is left out of the JSON; its largest entries stay."""
_MAX_AUC_CLASSES = 1000
_NUM_BINS = 10
_NUM_CONFUSIONS = 20


@dataclass(frozen=True)
class ClassScores:
    """One class against the rest."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    """Samples that are of this class."""
    num_predicted: int
    roc_auc: float | None
    """None where the part has samples of this class only, or none of it."""


@dataclass(frozen=True)
class Confusion:
    """Samples of one class that were taken for another."""

    label: str
    taken_for: str
    count: int
    support: int


@dataclass(frozen=True)
class Bin:
    """Samples whose winning class got about the same probability."""

    confidence: float
    accuracy: float
    num_samples: int


@dataclass(frozen=True)
class Classification(Metrics):
    """What a classifier is worth."""

    labels: tuple[str, ...]
    per_class: tuple[ClassScores, ...]
    confusion_CC: NDArray[np.int64]
    """Row: the true class; column: the predicted one."""
    confusions: tuple[Confusion, ...]
    """The most frequent mistakes."""
    calibration: tuple[Bin, ...]

    def details(self) -> dict[str, Any]:
        """Scores by class, the matrix where it is not too large, mistakes, calibration."""
        has_matrix = len(self.labels) <= _MAX_MATRIX_CLASSES
        return {
            "labels": list(self.labels),
            "per_class": [vars(scores) for scores in self.per_class],
            "confusion_matrix": self.confusion_CC.tolist() if has_matrix else None,
            "confusions": [vars(confusion) for confusion in self.confusions],
            "calibration": [vars(part) for part in self.calibration],
        }


def classification(
    targets_N: Array, probabilities_NC: Array, labels: Sequence[str], predicted_N: Array | None = None
) -> Classification:
    """The metrics of class probabilities.

    Args:
        targets_N: True class indices.
        probabilities_NC: The model's, of each class.
        labels: Names of the classes [C].
        predicted_N: Class indices that the model answers with; where not given, the most probable ones.

    Raises: EvaluationError where a probability is not finite.
    """
    from sklearn import metrics

    probabilities_NC = finite(probabilities_NC, "probabilities").astype(np.float64)
    predicted_N = np.asarray(probabilities_NC.argmax(axis=1) if predicted_N is None else predicted_N)
    classes_C = np.arange(len(labels))
    confusion_CC = metrics.confusion_matrix(targets_N, predicted_N, labels=classes_C)
    none: Any = 0  # the precision of a class that is never predicted; typed as text in scikit-learn 1.9
    scores_3C = np.array(
        metrics.precision_recall_fscore_support(targets_N, predicted_N, labels=classes_C, zero_division=none)[
            :3
        ]
    )
    aucs_C = _aucs(targets_N, probabilities_NC)
    losses_N = _losses(targets_N, probabilities_NC)
    calibration = _calibration(targets_N, predicted_N, probabilities_NC)
    support_C, num_predicted_C = confusion_CC.sum(axis=1), confusion_CC.sum(axis=0)
    values = {"accuracy": float(metrics.accuracy_score(targets_N, predicted_N))}
    values |= _averages(scores_3C, support_C)
    values["log_loss"] = float(losses_N.mean())
    known_aucs = [auc for auc in aucs_C if auc is not None]
    if known_aucs:
        values["roc_auc"] = float(np.mean(known_aucs))
    for k in _TOP_K:
        if 2 * k <= len(labels):
            values[f"top_{k}_accuracy"] = float(
                metrics.top_k_accuracy_score(targets_N, probabilities_NC, k=k, labels=classes_C)
            )
    values["calibration_error"] = sum(
        abs(part.accuracy - part.confidence) * part.num_samples for part in calibration
    ) / len(targets_N)
    return Classification(
        task="classification",
        num_samples=len(targets_N),
        values=values,
        loss=Loss.of(losses_N, entropy(support_C)),
        notes=tuple(_notes(labels, support_C, num_predicted_C, has_auc=bool(known_aucs))),
        labels=tuple(labels),
        per_class=tuple(
            ClassScores(
                label,
                *map(float, scores_3C[:, number]),
                support=int(support_C[number]),
                num_predicted=int(num_predicted_C[number]),
                roc_auc=aucs_C[number],
            )
            for number, label in enumerate(labels)
        ),
        confusion_CC=confusion_CC,
        confusions=tuple(_confusions(confusion_CC, labels)),
        calibration=tuple(calibration),
    )


def _averages(scores_3C: Array, support_C: Array) -> dict[str, float]:
    """Means over the classes that the part has: alike (macro), and by their support (weighted)."""
    values = {}
    for average, weights_C in (("macro", support_C > 0), ("weighted", support_C)):
        for name, scores_C in zip(("precision", "recall", "f1"), scores_3C, strict=True):
            values[f"{name}_{average}"] = float(np.average(scores_C, weights=weights_C))
    return values


def _losses(targets_N: Array, probabilities_NC: Array) -> Array:
    """Cross-entropy [N] of each sample, in nats; the mean is scikit-learn's log_loss."""
    smallest = np.finfo(np.float32).eps
    shares_NC = probabilities_NC / probabilities_NC.sum(axis=1, keepdims=True)
    return -np.log(np.clip(shares_NC[np.arange(len(targets_N)), targets_N], smallest, 1.0))


def _aucs(targets_N: Array, probabilities_NC: Array) -> list[float | None]:
    """Area under the ROC curve of each class against the rest; None where the part cannot tell."""
    from sklearn.metrics import roc_auc_score

    if probabilities_NC.shape[1] > _MAX_AUC_CLASSES:
        return [None] * probabilities_NC.shape[1]
    found: list[float | None] = []
    for number, probabilities_N in enumerate(probabilities_NC.T):
        is_of_class_N = targets_N == number
        can_tell = 0 < is_of_class_N.sum() < len(targets_N)
        found.append(float(roc_auc_score(is_of_class_N, probabilities_N)) if can_tell else None)
    return found


def _calibration(targets_N: Array, predicted_N: Array, probabilities_NC: Array) -> list[Bin]:
    """Samples by the probability of the predicted class, in bins of equal width; empty bins are left out.

    Source: Guo et al. (2017), "On Calibration of Modern Neural Networks", equations 2 and 3.
    """
    confidence_N = probabilities_NC[np.arange(len(predicted_N)), predicted_N]
    is_right_N = predicted_N == targets_N
    bin_N = np.minimum((confidence_N * _NUM_BINS).astype(int), _NUM_BINS - 1)
    return [
        Bin(float(confidence_N[is_in].mean()), float(is_right_N[is_in].mean()), int(is_in.sum()))
        for is_in in (bin_N == number for number in range(_NUM_BINS))
        if is_in.any()
    ]


def _confusions(confusion_CC: Array, labels: Sequence[str]) -> list[Confusion]:
    wrong_CC = confusion_CC - np.diag(np.diag(confusion_CC))
    largest = np.argsort(-wrong_CC, axis=None, kind="stable")[:_NUM_CONFUSIONS]
    return [
        Confusion(labels[true], labels[taken], int(wrong_CC[true, taken]), int(confusion_CC[true].sum()))
        for true, taken in (divmod(int(place), len(labels)) for place in largest)
        if wrong_CC[true, taken]
    ]


def _notes(labels: Sequence[str], support_C: Array, num_predicted_C: Array, *, has_auc: bool) -> list[str]:
    notes = []
    present = np.flatnonzero(support_C).tolist()
    if len(present) == 1:
        notes.append(
            f"All samples are of one class ({labels[present[0]]!r}): ROC-AUC is left out, and the accuracy "
            "says nothing of the other classes. Judge on more data, or on another split"
        )
    elif len(present) < len(labels):
        missing = _named([labels[number] for number in np.flatnonzero(support_C == 0).tolist()])
        notes.append(f"No sample is of class {missing}: macro averages are over the other classes")
    never = np.flatnonzero((num_predicted_C == 0) & (support_C > 0)).tolist()
    if never:
        notes.append(
            f"The model never answers {_named([labels[number] for number in never])}: "
            "its precision counts as 0"
        )
    if not has_auc and len(present) > 1:
        notes.append(f"ROC-AUC is left out: there are more than {_MAX_AUC_CLASSES} classes")
    return notes


def _named(labels: Sequence[str]) -> str:
    shown = ", ".join(map(repr, labels[:8]))
    return shown if len(labels) <= 8 else f"{shown} and {len(labels) - 8} more"
