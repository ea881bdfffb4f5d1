"""Walking over samples with a predictor: from parts of a dataset to metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from eagleray import data
from eagleray.errors import EvaluationError
from eagleray.evaluation import LanguageSums, Metrics, classification, regression
from eagleray.evaluation.metrics import Array
from eagleray.inference.predictor import Predictor
from eagleray.specs import ModelCard

_TOKENS = ("text", "tokens")
"""Inputs that a dataset's parts yield as the model takes them; others are raw."""


@dataclass(frozen=True)
class Judged:
    """Metrics, and the arrays that they come from; no arrays where the targets are tokens."""

    metrics: Metrics
    targets: Array | None = None
    """Class indices of the model, or values [samples, V]."""
    outputs: Array | None = None
    """Probabilities [samples, classes], or values [samples, V]."""
    predicted: Array | None = None
    """The predictor's class indices."""
    positions: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    """Of the samples, in their part; one part after the other."""


@dataclass(frozen=True)
class Walk:
    """How samples are chosen and fed."""

    batch_size: int
    max_samples: int | None = None
    seed: int = 0
    transform: data.Transform | None = None
    classes: Array | None = None
    """The model's class index of each class of the dataset."""


class _Sums(Protocol):
    def add(self, targets: Array, outputs: Mapping[str, Array]) -> None: ...
    def result(self, positions: Array) -> Judged: ...


def judge_parts(predictor: Predictor, parts: Mapping[str, data.Part], walk: Walk) -> Judged:
    """The metrics of a model over parts of a dataset that was opened raw.

    Raises:
        InputError: an input is not what the model takes.
        EvaluationError: an output is not finite.
        DataError: samples cannot be read.
    """
    sums = _sums(predictor.card, walk)
    (name,) = [tensor.name for tensor in predictor.card.inputs]
    seen = []
    for part, positions in _batches(parts, walk):
        arrays = part.fetch(positions)
        if walk.transform is not None:
            arrays = walk.transform(arrays, seed=0, epoch=0, positions=positions)
        if predictor.card.signature.input_kind in _TOKENS:
            outputs = predictor.predict_encoded(arrays.inputs)
        else:
            outputs = predictor.predict({name: arrays.inputs})
        sums.add(arrays.targets, outputs)
        seen.append(positions)
    return sums.result(np.concatenate(seen))


def shares(parts: Mapping[str, data.Part], max_samples: int | None) -> dict[str, int]:
    """How many samples of each part are judged."""
    total = sum(part.num_samples for part in parts.values())
    if max_samples is None or max_samples >= total:
        return {name: part.num_samples for name, part in parts.items()}
    return {name: max(1, round(max_samples * part.num_samples / total)) for name, part in parts.items()}


def _batches(parts: Mapping[str, data.Part], walk: Walk) -> Iterator[tuple[data.Part, Array]]:
    for name, size in shares(parts, walk.max_samples).items():
        part = parts[name]
        is_whole = size == part.num_samples
        order = data.SampleOrder(part.num_samples, walk.seed, part.blocks, shuffle=not is_whole)
        for start in range(0, size, walk.batch_size):
            yield part, order.positions(0, start, min(start + walk.batch_size, size))


def _sums(card: ModelCard, walk: Walk) -> _Sums:
    match card.signature.target_kind:
        case "class":
            return _Classes(card, walk)
        case "value":
            return _Values()
        case "tokens":
            return _Tokens(card, is_masked=walk.transform is not None)


class _Classes:
    def __init__(self, card: ModelCard, walk: Walk):
        number = card.signature.num_classes
        assert number is not None
        self._labels = card.signature.labels or tuple(map(str, range(number)))
        self._classes = np.arange(number) if walk.classes is None else walk.classes
        self._targets: list[Array] = []
        self._probabilities: list[Array] = []
        self._predicted: list[Array] = []

    def add(self, targets: Array, outputs: Mapping[str, Array]) -> None:
        self._targets.append(self._classes[targets])
        self._probabilities.append(outputs["probabilities"])
        self._predicted.append(outputs["class"])

    def result(self, positions: Array) -> Judged:
        targets, predicted = np.concatenate(self._targets), np.concatenate(self._predicted)
        probabilities = np.concatenate(self._probabilities)
        metrics = classification(targets, probabilities, self._labels, predicted_N=predicted)
        return Judged(metrics, targets, probabilities, predicted, positions)


class _Values:
    def __init__(self) -> None:
        self._targets: list[Array] = []
        self._values: list[Array] = []

    def add(self, targets: Array, outputs: Mapping[str, Array]) -> None:
        self._targets.append(targets.reshape(len(targets), -1))
        self._values.append(outputs["value"])

    def result(self, positions: Array) -> Judged:
        targets, values = np.concatenate(self._targets), np.concatenate(self._values)
        return Judged(regression(targets, values), targets, values, None, positions)


class _Tokens:
    def __init__(self, card: ModelCard, *, is_masked: bool):
        if is_masked:
            reason = "the model fills in masked tokens from both sides, which is no way to send text"
        elif card.signature.tokenizer != "bytes":
            reason = "the tokens are not bytes, and how many each stands for is not known"
        else:
            reason = None
        self._sums = LanguageSums(no_bits=reason)

    def add(self, targets: Array, outputs: Mapping[str, Array]) -> None:
        logits = outputs["logits"]
        if logits.shape[:2] != targets.shape:
            raise EvaluationError(
                f"the model returned logits of shape {list(logits.shape)} for targets of shape "
                f"{list(targets.shape)}; it must predict a token at each place"
            )
        self._sums.add(targets, logits)

    def result(self, positions: Array) -> Judged:
        return Judged(self._sums.result(), positions=positions)
