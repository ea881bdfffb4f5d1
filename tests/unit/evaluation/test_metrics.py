"""Metrics against scikit-learn's own functions, against torch, and on data that is hardly there."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn import metrics as reference

from eagleray.errors import EvaluationError
from eagleray.evaluation import LanguageSums, classification, regression
from eagleray.specs import IGNORED_TARGET

LABELS = ("ant", "bee", "cat", "dog", "eel", "fox")


def guesses(num_samples=300, num_classes=6, seed=0):
    """Targets, and probabilities that are right more often than not, float32 as a predictor's."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, num_classes, num_samples)
    logits = rng.normal(size=(num_samples, num_classes)) + 2 * np.eye(num_classes)[targets]
    shares = np.exp(logits)
    return targets, (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def test_a_classifier_is_judged_as_scikit_learn_does():
    targets, probabilities = guesses()
    found = classification(targets, probabilities, LABELS)
    predicted = probabilities.argmax(axis=1)
    report = reference.classification_report(targets, predicted, target_names=LABELS, output_dict=True)
    assert found.values["accuracy"] == report["accuracy"]
    for average in ("macro", "weighted"):
        for name, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert found.values[f"{name}_{average}"] == pytest.approx(report[f"{average} avg"][theirs])
    for scores in found.per_class:
        row = report[scores.label]
        assert (scores.precision, scores.recall, scores.f1, scores.support) == pytest.approx(
            (row["precision"], row["recall"], row["f1-score"], row["support"])
        )
    doubles = probabilities.astype(np.float64)
    doubles /= doubles.sum(axis=1, keepdims=True)
    assert found.values["log_loss"] == pytest.approx(reference.log_loss(targets, doubles))
    assert found.values["roc_auc"] == pytest.approx(
        reference.roc_auc_score(targets, doubles, multi_class="ovr")
    )
    assert found.values["top_3_accuracy"] == reference.top_k_accuracy_score(targets, probabilities, k=3)
    np.testing.assert_array_equal(found.confusion_CC, reference.confusion_matrix(targets, predicted))
    assert found.notes == ()
    assert sum(part.num_samples for part in found.calibration) == 300
    worst = found.confusions[0]
    wrong = found.confusion_CC - np.diag(np.diag(found.confusion_CC))
    assert worst.count == wrong.max()
    assert found.confusion_CC[LABELS.index(worst.label), LABELS.index(worst.taken_for)] == worst.count


def test_the_models_own_answers_count():
    """Near ties are decided by the predictor; the metrics are those of its answers."""
    targets = np.array([0, 1, 1])
    probabilities = np.array([[0.5, 0.5], [0.5, 0.5], [0.2, 0.8]], np.float32)
    assert classification(targets, probabilities, "ab").values["accuracy"] == pytest.approx(2 / 3)
    found = classification(targets, probabilities, "ab", predicted_N=np.array([0, 1, 1]))
    assert found.values["accuracy"] == 1


@pytest.mark.parametrize(
    ("labels", "names"),
    [("ab", set()), (LABELS, {"top_3_accuracy"}), (range(10), {"top_3_accuracy", "top_5_accuracy"})],
)
def test_top_k_where_it_says_something(labels, names):
    labels = [str(label) for label in labels]
    found = classification(*guesses(num_classes=len(labels)), labels)
    assert {name for name in found.values if name.startswith("top_")} == names


def test_one_class_only_is_said_and_not_scored():
    found = classification(np.zeros(5, int), guesses(5, 3)[1], "abc")
    assert "roc_auc" not in found.values
    assert any("All samples are of one class ('a')" in note for note in found.notes)
    assert found.loss.baseline == 0
    assert all(math.isfinite(value) for value in found.values.values())
    json.dumps(found.to_json(), allow_nan=False)


def test_a_missing_class_and_one_that_is_never_answered_are_named():
    targets, probabilities = guesses(60, 4)
    targets[targets == 3] = 0
    probabilities[:, 2] = 0
    found = classification(targets, probabilities, LABELS[:4])
    assert any("No sample is of class 'dog'" in note for note in found.notes)
    assert any("never answers 'cat'" in note for note in found.notes)
    assert found.per_class[3].roc_auc is None
    support = found.confusion_CC.sum(axis=1)
    recalls = [scores.recall for scores in found.per_class[:3]]
    assert found.values["recall_macro"] == pytest.approx(np.mean(recalls))
    assert found.values["recall_weighted"] == pytest.approx(np.average(recalls, weights=support[:3]))


def test_outputs_that_are_not_finite_are_an_error_with_a_count():
    targets, probabilities = guesses(10, 3)
    probabilities[[4, 7], 1] = math.nan
    with pytest.raises(
        EvaluationError, match=r"probabilities are NaN or infinite in 2 samples .first: sample 4."
    ) as e:
        classification(targets, probabilities, "abc")
    assert e.value.exit_code == 1
    with pytest.raises(EvaluationError, match=r"values are NaN or infinite in 1 samples .first: sample 1."):
        regression(np.zeros((2, 1)), np.array([[0.0], [math.inf]]))
    sums, logits = LanguageSums(), np.zeros((2, 3, 4))
    sums.add(np.zeros((2, 3), int), logits)
    logits[1, 0, 0] = math.nan
    with pytest.raises(EvaluationError, match=r"logits are NaN or infinite in 1 samples .first: sample 3."):
        sums.add(np.zeros((2, 3), int), logits)


@pytest.mark.parametrize("num_values", [1, 3])
def test_values_are_judged_as_scikit_learn_does(num_values):
    rng = np.random.default_rng(0)
    targets = rng.normal(5, 2, (200, num_values)).astype(np.float32)
    values = targets + rng.normal(0.1, 0.5, targets.shape).astype(np.float32)
    found = regression(targets, values)
    for name, function in {
        "mae": reference.mean_absolute_error,
        "mse": reference.mean_squared_error,
        "r2": reference.r2_score,
        "explained_variance": reference.explained_variance_score,
        "median_absolute_error": reference.median_absolute_error,
    }.items():
        assert found.values[name] == pytest.approx(function(targets, values), rel=1e-5), name
    assert found.values["rmse"] == pytest.approx(math.sqrt(found.values["mse"]))
    assert found.values["max_error"] == pytest.approx(np.abs(values - targets).max(), rel=1e-5)
    assert found.quantiles["0.5"] == pytest.approx(np.median(values - targets), rel=1e-5)
    assert len(found.per_output) == (0 if num_values == 1 else num_values)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("targets", "note"),
    [([[1.0]], "one sample only"), ([[1.0], [1.0]], "All targets of an output are equal")],
)
def test_values_without_spread_have_no_r2(targets, note):
    found = regression(np.array(targets), np.array(targets) + 0.5)
    assert "r2" not in found.values
    assert note in found.notes[0]
    assert found.values["mae"] == 0.5
    json.dumps(found.to_json(), allow_nan=False)


def test_tokens_are_judged_by_their_cross_entropy():
    from scipy.special import log_softmax

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(7, 5, 11)).astype(np.float32) * 3
    targets = rng.integers(0, 11, (7, 5))
    targets[0] = IGNORED_TARGET
    targets[3, 2:] = IGNORED_TARGET
    sums = LanguageSums()
    sums.add(targets[:4], logits[:4])
    sums.add(targets[4:], logits[4:])
    found = sums.result()
    counted = targets != IGNORED_TARGET
    shares = np.take_along_axis(log_softmax(logits.astype(float), axis=2), targets[..., None] % 11, axis=2)
    expected = -shares[..., 0][counted].mean()
    assert found.values["loss"] == pytest.approx(float(expected))
    assert found.values["perplexity"] == pytest.approx(math.exp(expected))
    assert found.values["bits_per_byte"] == pytest.approx(float(expected) / math.log(2))
    assert found.num_tokens == counted.sum()
    assert found.num_samples == 7
    hits = (logits.argmax(axis=2) == targets)[counted]
    assert found.values["accuracy"] == pytest.approx(hits.mean())
    top = np.argsort(-logits, axis=2)[..., :5]
    assert found.values["top_5_accuracy"] == pytest.approx(
        (top == targets[..., None]).any(axis=2)[counted].mean()
    )
    assert len(found.loss_by_position) == 5


def test_large_batches_are_cut_and_give_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    targets, logits = rng.integers(0, 9, (6, 4)), rng.normal(size=(6, 4, 9))
    results = []
    for limit in (1 << 22, 40):
        monkeypatch.setattr("eagleray.evaluation.language._CHUNK_ELEMENTS", limit)
        sums = LanguageSums(no_bits="tokens are words")
        sums.add(targets, logits)
        results.append(sums.result())
    assert results[0].values == pytest.approx(results[1].values)
    assert "bits_per_byte" not in results[0].values
    assert results[0].notes == ("Bits per byte are left out: tokens are words",)


def test_windows_that_are_all_padding_cannot_be_judged():
    sums = LanguageSums()
    sums.add(np.full((2, 3), IGNORED_TARGET), np.zeros((2, 3, 4)))
    with pytest.raises(EvaluationError, match="none of the 2 windows has a token to predict"):
        sums.result()
