"""Requests as one pass: what fits together, and that nobody gets another answer than alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eagleray.inference import Predictor
from eagleray.models import build
from eagleray.packaging import Folder, open_package, write_package
from eagleray.serving.replica.joining import Alike, Padded, joining_of
from eagleray.specs import Architecture, Signature
from eagleray.specs.model import GptModel, MlpModel, ModuleModel, RecurrentModel, TransformerModel
from support.cards import SIGNATURES, TEXT, card, weights

IMAGE, WIDE = np.zeros((1, 1, 8, 8), np.float32), np.zeros((3, 1, 8, 8), np.float32)
TEXTS = np.array(["a", "bc"], object)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ({"x": IMAGE}, {"x": WIDE}, True),
        ({"x": IMAGE}, {"x": IMAGE[:, :, :4]}, False),
        ({"x": IMAGE}, {"x": IMAGE.astype(np.int64)}, False),
        ({"x": TEXTS}, {"x": TEXTS[:1]}, True),
        ({"x": IMAGE, "y": WIDE[:1]}, {"y": IMAGE, "x": IMAGE}, True),
        ({"x": IMAGE, "y": WIDE[:1]}, {"x": IMAGE}, False),
    ],
)
def test_what_shares_a_pass(one, other, together):
    assert (Alike().bucket(one) == Alike().bucket(other)) is together


def test_each_request_gets_its_own_rows_back():
    requests = [{"x": np.array([[1.0], [2.0]])}, {"x": np.array([[3.0]])}]
    joined = Alike().join(requests)
    first, second = Alike().split({"y": joined["x"] * 10}, requests)
    assert (first["y"].tolist(), second["y"].tolist()) == ([[10.0], [20.0]], [[30.0]])


def test_rows_of_tokens_are_filled_up_and_cut_again():
    padded = Padded("tokens", 9)
    requests = [{"tokens": np.array([[1, 2, 3]])}, {"tokens": np.array([[4], [5]])}]
    joined = padded.join(requests)
    assert joined["tokens"].tolist() == [[1, 2, 3], [4, 9, 9], [5, 9, 9]]
    parts = padded.split({"logits": joined["tokens"][..., None]}, requests)
    assert [part["logits"].tolist() for part in parts] == [[[[1], [2], [3]]], [[[4]], [[5]]]]
    alone = requests[:1]
    assert padded.join(alone) is alone[0]


def test_long_rows_do_not_go_with_short_ones():
    padded = Padded("tokens", 9)
    buckets = [padded.bucket({"tokens": np.zeros((1, length))}) for length in (1, 16, 17, 32, 33, 512)]
    assert buckets == [16, 16, 32, 32, 64, 512]
    whole = Padded("tokens", 9, is_one_bucket=True)
    assert len({whole.bucket({"tokens": np.zeros((1, length))}) for length in (1, 100)}) == 1


TOKENS = SIGNATURES["tokens"]
CLASSES = Signature(input_kind="tokens", input_shape=(12,), target_kind="class", num_classes=3, **TEXT)
NO_PADDING = {"padding_token": None, "tokenizer": None, "mask_token": None}
GPT, TRANSFORMER = (
    GptModel(kind="gpt", width=16, num_heads=2, num_layers=2),
    TransformerModel(kind="transformer", width=16, num_heads=2, num_layers=2),
)
LSTM = RecurrentModel(kind="lstm", hidden=16, embedding=8, bidirectional=True, num_layers=2)


@pytest.mark.parametrize(
    ("signature", "model", "is_padded"),
    [
        (TOKENS, GPT, True),
        (TOKENS.model_copy(update=NO_PADDING), GPT, True),
        (TOKENS, TRANSFORMER, True),
        (TOKENS, LSTM, True),
        (TOKENS.model_copy(update=NO_PADDING), LSTM, False),
        (TOKENS, ModuleModel(kind="module", function="a:b"), False),
        (CLASSES, ModuleModel(kind="module", function="a:b"), True),
        (CLASSES.model_copy(update=NO_PADDING), TRANSFORMER, False),
        (SIGNATURES["image"], MlpModel(kind="mlp"), False),
        (SIGNATURES["text"], MlpModel(kind="mlp"), False),
    ],
)
def test_which_models_take_rows_of_different_lengths_together(signature, model, is_padded):
    of = card("tokens").model_copy(update={"signature": signature, "architecture": Architecture.of(model)})
    assert isinstance(joining_of(of), Padded) is is_padded


@pytest.mark.parametrize("model", [GPT, TRANSFORMER, LSTM], ids=lambda model: model.kind)
def test_a_row_that_is_filled_up_predicts_the_same(model):
    torch.manual_seed(0)
    module = build(model, TOKENS).eval()
    of = card("tokens").model_copy(update={"architecture": Architecture.of(model)})
    joining, drawn = joining_of(of), np.random.default_rng(0)
    requests = [{"tokens": drawn.integers(0, 256, shape)} for shape in ((1, 12), (2, 5), (1, 1))]

    def run(inputs):
        with torch.no_grad():
            return {"logits": module(torch.from_numpy(inputs["tokens"])).numpy()}

    together = joining.split(run(joining.join(requests)), requests)
    for inputs, own in zip(requests, together, strict=True):
        alone = run(inputs)["logits"]
        assert own["logits"].shape == alone.shape
        assert own["logits"] == pytest.approx(alone, abs=1e-5)


def test_rows_of_different_lengths_have_the_labels_that_they_have_alone(tmp_path):
    of = card(signature=CLASSES, architecture=Architecture.of(TRANSFORMER))
    write_package(Folder(tmp_path / "p"), of, weights(of))
    predictor, joining, drawn = (
        Predictor(open_package(tmp_path / "p")),
        joining_of(of),
        np.random.default_rng(0),
    )
    requests = [{"tokens": drawn.integers(0, 256, shape)} for shape in ((2, 12), (1, 3), (3, 7))]
    assert len({joining.bucket(inputs) for inputs in requests}) == 1
    together = joining.split(predictor.predict(joining.join(requests)), requests)
    for inputs, own in zip(requests, together, strict=True):
        alone = predictor.predict(inputs)
        assert own["label"].tolist() == alone["label"].tolist()
        assert own["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-6)
