"""Whether a model can be judged on a dataset, and which of its classes are which of the model's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eagleray.errors import InputError
from eagleray.evaluation.metrics import Array
from eagleray.specs import Signature


def check_fit(model: Signature, data: Signature) -> None:
    """Raises: InputError if the model cannot take the inputs, or predicts another kind of target."""
    if data.input_kind != model.input_kind:
        raise InputError(
            f"the model takes {model.input_kind} input and the dataset has {data.input_kind}; "
            "give data of the kind that it was trained on"
        )
    _check_shapes(model, data)
    if data.feature_names and model.feature_names and data.feature_names != model.feature_names:
        raise InputError(_features(model.feature_names, data.feature_names))
    if data.sample_rate_hz != model.sample_rate_hz:
        raise InputError(
            f"the model takes audio of {model.sample_rate_hz} Hz and the dataset has {data.sample_rate_hz} "
            "Hz; resample it"
        )
    if (data.vocabulary_size or 0) > (model.vocabulary_size or 0):
        raise InputError(
            f"the dataset has tokens up to {data.vocabulary_size}, and the model's vocabulary ends at "
            f"{model.vocabulary_size}; give data made with the model's tokenizer"
        )
    if data.target_kind != model.target_kind:
        raise InputError(
            f"the model predicts a {model.target_kind} target and the dataset has a {data.target_kind} "
            "one; name another data.target or data.target_kind"
        )
    if data.target_kind == "value" and np.prod(data.target_shape) != np.prod(model.target_shape):
        raise InputError(
            f"the model predicts {int(np.prod(model.target_shape))} values and the dataset has "
            f"{int(np.prod(data.target_shape))}; name another data.target"
        )


def classes_of(model: Signature, data: Signature) -> Array:
    """The model's class index [C] of each class of the dataset: matched by label where both have labels.

    Raises: InputError if the dataset has a class that the model does not know.
    """
    assert data.num_classes is not None
    assert model.num_classes is not None
    if data.labels and model.labels:
        unknown = [label for label in data.labels if label not in model.labels]
        if unknown:
            raise InputError(
                f"the dataset has labels that the model does not know: {_named(unknown)}; "
                f"the model's are {_named(model.labels)}"
            )
        return np.array([model.labels.index(label) for label in data.labels])
    if data.num_classes != model.num_classes:
        raise InputError(
            f"the model has {model.num_classes} classes and the dataset {data.num_classes}, and without "
            "labels on both sides they cannot be matched; give the dataset labels"
        )
    return np.arange(data.num_classes)


def _check_shapes(model: Signature, data: Signature) -> None:
    is_shorter = model.target_kind == "tokens" and data.input_shape < model.input_shape
    if data.input_shape != model.input_shape and not is_shorter:
        way_out = "data.sequence_length" if model.input_kind in ("text", "tokens") else "the data's columns"
        raise InputError(
            f"the model takes {model.input_kind} input of shape {list(model.input_shape)} and the dataset "
            f"has {list(data.input_shape)}; change {way_out}"
        )


def _features(wanted: Sequence[str], found: Sequence[str]) -> str:
    if set(wanted) == set(found):
        return f"the dataset has the model's features in another order; write data.features = {list(wanted)}"
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    return (
        f"the dataset's features are not the model's: {_named(missing) if missing else 'none'} missing, "
        f"{_named(extra) if extra else 'none'} too many; name the model's in data.features"
    )


def _named(labels: Sequence[str]) -> str:
    shown = ", ".join(map(repr, labels[:8]))
    return shown if len(labels) <= 8 else f"{shown} and {len(labels) - 8} more"
