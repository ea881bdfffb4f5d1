"""A dataset that the model cannot be judged on is refused in one sentence; classes are matched by name."""

from __future__ import annotations

import numpy as np
import pytest

from eagleray.errors import InputError
from eagleray.evaluation import check_fit, classes_of
from eagleray.specs import Signature

IMAGE = {"input_kind": "image", "input_shape": (1, 8, 8), "target_kind": "class", "num_classes": 3}
TABLE = {
    "input_kind": "tabular",
    "input_shape": (2,),
    "target_kind": "value",
    "target_shape": (1,),
    "feature_names": ("width", "height"),
}
TEXT = {
    "input_kind": "text",
    "input_shape": (64,),
    "target_kind": "tokens",
    "target_shape": (64,),
    "vocabulary_size": 258,
}
AUDIO = {
    "input_kind": "audio",
    "input_shape": (400,),
    "sample_rate_hz": 8000,
    "target_kind": "class",
    "num_classes": 2,
}


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        (IMAGE, {"input_kind": "tabular"}, "takes image input and the dataset has tabular"),
        (IMAGE, {"input_shape": (3, 8, 8)}, r"of shape \[1, 8, 8\] and the dataset has \[3, 8, 8\]"),
        (
            IMAGE,
            {"target_kind": "value", "target_shape": (1,)},
            "predicts a class target and the dataset has a value",
        ),
        (
            TABLE,
            {"feature_names": ("height", "width")},
            r"another order; write data.features = \['width', 'height'\]",
        ),
        (TABLE, {"feature_names": ("width", "depth")}, "'height' missing, 'depth' too many"),
        (TABLE, {"target_shape": (2,)}, "predicts 1 values and the dataset has 2"),
        (TEXT, {"input_shape": (128,), "target_shape": (128,)}, "change data.sequence_length"),
        (TEXT, {"vocabulary_size": 300}, "tokens up to 300, and the model's vocabulary ends at 258"),
        (AUDIO, {"sample_rate_hz": 16000}, "audio of 8000 Hz and the dataset has 16000 Hz"),
    ],
)
def test_what_does_not_fit_is_said(model, changes, words):
    with pytest.raises(InputError, match=words):
        check_fit(Signature(**model), Signature(**{**model, **changes}))


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (IMAGE, {}),
        (IMAGE, {"labels": ("a", "b"), "num_classes": 2}),
        (TABLE, {"feature_names": ()}),
        (TEXT, {"input_shape": (32,), "target_shape": (32,)}),
        (TEXT, {"vocabulary_size": 200}),
    ],
)
def test_what_fits_is_taken(model, changes):
    check_fit(Signature(**model), Signature(**{**model, **changes}))


def signature(labels=(), num_classes=None):
    return Signature(**{**IMAGE, "labels": tuple(labels), "num_classes": num_classes or len(labels)})


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        (signature("abc"), signature("abc"), [0, 1, 2]),
        (signature("abc"), signature("ac"), [0, 2]),
        (signature("abc"), signature("cab"), [2, 0, 1]),
        (signature("abc"), signature(num_classes=3), [0, 1, 2]),
        (signature(num_classes=3), signature(num_classes=3), [0, 1, 2]),
    ],
)
def test_classes_are_matched_by_name(model, data, expected):
    np.testing.assert_array_equal(classes_of(model, data), expected)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (signature("abxy"), "labels that the model does not know: 'x', 'y'; the model's are 'a', 'b', 'c'"),
        (signature(num_classes=4), "the model has 3 classes and the dataset 4"),
    ],
)
def test_unknown_classes_are_refused(data, words):
    with pytest.raises(InputError, match=words):
        classes_of(signature("abc"), data)
