import sys

import numpy as np
import pytest
import torch

from eagleray.data import normalize, open_dataset
from eagleray.errors import InputError, PackageError
from eagleray.inference import Predictor
from eagleray.inference import predictor as module
from eagleray.models import build
from eagleray.packaging import Folder, open_package, write_package
from eagleray.specs import Architecture
from eagleray.specs.data import DigitsData
from eagleray.specs.model import CnnModel, ModuleModel
from support.cards import MODELS, SIGNATURES, card, weights


def predictor(tmp_path, of, state=None, **options):
    write_package(Folder(tmp_path / "p"), of, weights(of) if state is None else state)
    return Predictor(open_package(tmp_path / "p", **options))


def inputs(kind, batch=5):
    draw = np.random.default_rng(0)
    signature = SIGNATURES[kind]
    if kind == "text":
        return {"text": np.array([f"text {index}" * (index + 1) for index in range(batch)], object)}
    if kind == "tokens":
        return {"tokens": draw.integers(0, 256, (batch, 12))}
    return {card(kind).inputs[0].name: draw.random((batch, *signature.input_shape), np.float32) * 16}


@pytest.mark.parametrize("kind", MODELS)
def test_the_cards_outputs_come_out(tmp_path, kind):
    made = predictor(tmp_path, card(kind))
    outputs = made.predict(inputs(kind))
    assert list(outputs) == [tensor.name for tensor in made.card.outputs]
    for tensor in made.card.outputs:
        array = outputs[tensor.name]
        assert array.dtype == {"FP32": np.float32, "INT64": np.int64, "BYTES": object}[tensor.datatype]
        assert len(array.shape) == len(tensor.shape)
        assert all(want in (-1, have) for have, want in zip(array.shape, tensor.shape, strict=True))
        assert len(array) == 5
    made.warm_up(3)
    assert not made.module.training


@pytest.mark.parametrize("kind", ["audio", "image", "tokens"])
def test_inputs_may_be_views_of_a_requests_bytes(tmp_path, kind, recwarn):
    """Which nobody may write to, and which start anywhere."""
    made, ((name, array),) = predictor(tmp_path, card(kind)), inputs(kind).items()
    view = np.frombuffer(b"xyz" + array.tobytes(), array.dtype, offset=3).reshape(array.shape)
    expected, found = made.predict({name: array}), made.predict({name: view})
    assert all((found[name] == expected[name]).all() for name in expected)
    assert [str(warning.message) for warning in recwarn] == []


def test_a_class_has_its_label_and_probability(tmp_path):
    outputs = predictor(tmp_path, card()).predict(inputs("image", 40))
    assert set(outputs["label"]) <= {"zero", "one", "two"}
    assert [("zero", "one", "two")[index] for index in outputs["class"]] == list(outputs["label"])
    assert (outputs["probabilities"].argmax(axis=1) == outputs["class"]).all()
    assert outputs["probabilities"].sum(axis=1) == pytest.approx(1)


def test_classes_without_names_are_numbers(tmp_path):
    assert set(predictor(tmp_path, card("audio")).predict(inputs("audio"))["label"]) <= {"0", "1"}


def test_normalization_is_the_datas_own(tmp_path):
    images = inputs("image")["image"]
    made = card()
    expected = build(made.architecture.spec, made.signature).eval()
    expected.load_state_dict(weights(made))
    with torch.no_grad():
        raw = expected(torch.from_numpy(normalize.apply(images, made.signature.normalization)))
    found = predictor(tmp_path, made).predict({"image": images})["probabilities"]
    assert (found == raw.softmax(dim=1).numpy()).all()


def test_raw_and_encoded_samples_get_the_same_answer_in_any_batch(tmp_path):
    spec = DigitsData(kind="digits", normalize="standard")
    encoded, raw = open_dataset(spec), open_dataset(DigitsData(kind="digits"))
    model = CnnModel(kind="cnn", channels=(4,), hidden=16)
    digits = predictor(tmp_path, card(architecture=Architecture.of(model), signature=encoded.signature))
    positions = np.arange(64)
    images = raw.test.fetch(positions).inputs
    whole = digits.predict({"image": images})
    from_parts = digits.predict_encoded(encoded.test.fetch(positions).inputs)
    assert all((whole[name] == from_parts[name]).all() for name in whole)
    for size in (1, 7):
        pieces = [images[start : start + size] for start in range(0, len(images), size)]
        labels = np.concatenate([digits.predict({"image": piece})["label"] for piece in pieces])
        assert (labels == whole["label"]).all()


class Wobbling(torch.nn.Module):
    """As real kernels do, only more: the last bits depend on the number of samples in the batch."""

    def forward(self, features):
        noise = 1e-6 if len(features) % 2 else -1e-6
        return torch.stack([features[:, 0], features[:, 0] + noise, -features[:, 0]], dim=1)


def test_a_near_tie_is_judged_alone_and_so_the_same_in_every_batch(tmp_path):
    digits = predictor(tmp_path, card())
    digits.module = Wobbling()
    encoded = np.ones((7, 1), np.float32)
    labels = [digits.predict_encoded(encoded[:size])["class"].tolist() for size in range(1, 8)]
    assert labels == [[1] * size for size in range(1, 8)]


def test_a_clear_winner_is_not_judged_again(tmp_path, monkeypatch):
    digits = predictor(tmp_path, card())
    monkeypatch.setattr(digits, "_logits", lambda encoded: np.eye(3, dtype=np.float32)[: len(encoded)])
    assert digits.predict_encoded(np.zeros((3, 1, 8, 8), np.float32))["class"].tolist() == [0, 1, 2]
    assert module._near_ties(np.float32([[1, 1, 0], [2, 1, 0], [0, 0, 0]]), 1e-5).tolist() == [0, 2]


def test_many_samples_go_through_in_pieces(tmp_path, monkeypatch):
    made, many = predictor(tmp_path, card("tabular")), inputs("tabular", 700)
    whole = made.predict(many)["value"]
    monkeypatch.setattr(module, "CHUNK", 64)
    assert made.predict(many)["value"] == pytest.approx(whole, abs=1e-6)


def test_text_is_cut_and_padded_as_in_training(tmp_path):
    made = predictor(tmp_path, card("text"))
    long, short, empty = "x" * 50, "häh", ""
    encoded = made.encode({"text": np.array([long, short, empty], object)})
    assert encoded.dtype == np.int64
    assert encoded.tolist() == [[120] * 12, [104, 195, 164, 104] + [256] * 8, [256] * 12]
    assert np.isfinite(made.predict({"text": np.array([short, empty], object)})["probabilities"]).all()


def test_fewer_tokens_than_the_context(tmp_path):
    gpt = predictor(tmp_path, card("tokens"))
    whole = gpt.predict(inputs("tokens"))["logits"]
    half = gpt.predict({"tokens": inputs("tokens")["tokens"][:, :6]})["logits"]
    assert half.shape == (5, 6, 258)
    assert half == pytest.approx(whole[:, :6], abs=1e-5)


def test_short_tokens_of_a_classifier_are_padded(tmp_path):
    signature = SIGNATURES["text"].model_copy(update={"input_kind": "tokens"})
    made = predictor(tmp_path, card("text", signature=signature))
    short = np.array([[1, 2, 3]])
    padded = np.array([[1, 2, 3] + [256] * 9])
    found = [made.predict({"tokens": tokens})["probabilities"] for tokens in (short, padded)]
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("image", {"img": np.zeros((1, 1, 8, 8), np.float32)}, "input 'img' is not known; this model takes"),
        ("image", {}, "input 'image' is missing"),
        ("image", {"image": np.zeros((1, 1, 8, 8))}, "datatype FP64, expected FP32"),
        ("image", {"image": np.zeros((1, 8, 8), np.float32)}, r"shape \[1, 8, 8\], expected \[-1, 1, 8, 8\]"),
        ("image", {"image": np.zeros((0, 1, 8, 8), np.float32)}, "holds nothing"),
        ("image", {"image": np.full((2, 1, 8, 8), np.nan, np.float32)}, "sample 0 has NaN or infinite"),
        ("tokens", {"tokens": np.array([[1, 258]])}, r"token 258 in sample 0 is not in the vocabulary"),
        ("tokens", {"tokens": np.array([[1], [-1]])}, "token -1 in sample 1"),
        ("tokens", {"tokens": np.zeros((1, 13), np.int64)}, "13 tokens a sample; the model takes 12 at most"),
        ("tokens", {"tokens": np.zeros((1, 3), np.int32)}, "datatype INT32, expected INT64"),
        ("text", {"text": np.array(["a\ud800"], object)}, "text 0 holds '\\\\ud800', which is no character"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_and_the_next_is_answered(tmp_path, kind, given, said):
    made = predictor(tmp_path, card(kind))
    with pytest.raises(InputError, match=said):
        made.predict(given)
    assert made.check(inputs(kind)) == 5
    assert len(made.predict(inputs(kind))) == len(made.card.outputs)


def test_tokens_without_padding_must_be_whole(tmp_path):
    changes = {"input_kind": "tokens", "padding_token": None, "tokenizer": None}
    made = predictor(tmp_path, card("text", signature=SIGNATURES["text"].model_copy(update=changes)))
    with pytest.raises(InputError, match="the model takes exactly 12"):
        made.predict({"tokens": np.zeros((1, 3), np.int64)})


@pytest.mark.parametrize(
    ("body", "said"),
    [("x.flatten(1)[:, :2]", r"shape \[2, 2\], and its card says \[-1, 3\]"), ("(x,)", "returned no tensor")],
)
def test_a_users_model_that_returns_something_else(tmp_path, monkeypatch, body, said):
    source = f"from torch import nn\nclass Net(nn.Module):\n    def forward(self, x): return {body}\n"
    monkeypatch.setattr(sys, "path", list(sys.path))
    Folder(tmp_path / "code").write_bytes("odd_net.py", source.encode())
    own = ModuleModel(kind="module", function="odd_net:Net", pass_signature=False)
    made = card(architecture=Architecture.of(own))
    write_package(Folder(tmp_path / "p"), made, {}, Folder(tmp_path / "code"))
    net = Predictor(open_package(tmp_path / "p", allow_code=True))
    with pytest.raises(PackageError, match=said):
        net.predict(inputs("image", 2))
