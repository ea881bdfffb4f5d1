"""Every pair of model and data works, in float32 and float64, or is refused by name."""

import math

import pytest
import torch
from pydantic import TypeAdapter

from eagleray import models
from eagleray.errors import SpecError
from eagleray.models import pairs
from eagleray.specs import Signature
from eagleray.specs.model import ModelSpec
from eagleray.specs.train import LossSpec

BATCH, STEPS, VOCABULARY = 3, 12, 258
INPUTS = {
    "tabular": {"input_shape": (5,)},
    "steps": {"input_kind": "tabular", "input_shape": (STEPS, 5)},
    "image": {"input_shape": (2, 9, 7)},
    "audio": {"input_shape": (1600,), "sample_rate_hz": 8000},
    "text": {"input_shape": (STEPS,), "vocabulary_size": VOCABULARY, "tokenizer": "bytes"},
    "tokens": {"input_shape": (STEPS,), "vocabulary_size": VOCABULARY},
}
TARGETS = {"class": {"num_classes": 4}, "value": {"target_shape": (2,)}, "tokens": {"target_shape": (STEPS,)}}
LOSSES = {"class": "cross_entropy", "value": "mse", "tokens": "next_token"}
SMALL = {
    "mlp": {"hidden": (8,)},
    "cnn": {"channels": (4, 4), "hidden": 8},
    "transformer": {"width": 8, "num_heads": 2, "num_layers": 1},
    "gpt": {"width": 8, "num_heads": 2, "num_layers": 1},
} | {kind: {"hidden": 8, "embedding": 4, "bidirectional": kind == "lstm"} for kind in ("rnn", "gru", "lstm")}


def signature_of(given, target):
    return Signature(**{"input_kind": given, "target_kind": target} | TARGETS[target] | INPUTS[given])


def model_of(kind, signature, **changes):
    return models.build(spec_of(kind, **changes), signature)


def spec_of(kind, **changes):
    return TypeAdapter(ModelSpec).validate_python({"kind": kind} | SMALL.get(kind, {}) | changes)


def batch_of(signature, dtype=torch.float32):
    if signature.input_kind in ("text", "tokens"):
        return torch.randint(256, (BATCH, *signature.input_shape))
    return torch.rand(BATCH, *signature.input_shape, dtype=dtype) * 2 - 1


def target_of(signature, dtype=torch.float32):
    if signature.target_kind == "value":
        return torch.rand(BATCH, *signature.target_shape, dtype=dtype)
    if signature.target_kind == "class":
        return torch.randint(signature.num_classes, (BATCH,))
    return torch.randint(256, (BATCH, STEPS))


SIGNATURES = [signature_of(given, target) for given in INPUTS for target in TARGETS]
FITTING = [(kind, s) for kind in pairs.FITS for s in SIGNATURES if pairs.problem(kind, s) is None]
REFUSED = [(kind, s) for kind in pairs.FITS for s in SIGNATURES if pairs.problem(kind, s) is not None]


def name(value):
    if isinstance(value, Signature):
        return f"{value.input_kind}{len(value.input_shape)}-{value.target_kind}"
    return str(value)


def test_so_many_pairs_fit():
    # mlp 3 inputs x 2 targets, cnn 2 x 2, each of rnn, gru, lstm, transformer 5 x 2 + 2, gpt 2;
    # a table of steps, flattened, is one more input of mlp
    assert len(FITTING) == (4 * 2) + (2 * 2) + 4 * (5 * 2 + 2) + 2


@pytest.mark.parametrize(("kind", "signature"), FITTING, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_fitting_pair_gives_one_finite_loss_per_sample_and_a_gradient_everywhere(kind, signature, dtype):
    torch.manual_seed(0)
    model = model_of(kind, signature).to(dtype)
    outputs = model(batch_of(signature, dtype))
    loss = models.per_sample_loss(
        TypeAdapter(LossSpec).validate_python({"kind": LOSSES[signature.target_kind]})
    )(outputs, target_of(signature, dtype))
    assert outputs.dtype == loss.dtype == dtype
    assert loss.shape == (BATCH,)
    loss.sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


@pytest.mark.parametrize(("kind", "signature"), REFUSED, ids=name)
def test_a_pair_that_cannot_be_is_refused_and_what_fits_is_named(kind, signature):
    with pytest.raises(
        SpecError, match=f"model.kind '{kind}'.*; for {signature.input_kind} input"
    ) as refusal:
        model_of(kind, signature)
    for other in pairs.FITS:
        is_named = other in str(refusal.value).rpartition("one of: ")[2].split(", ")
        assert is_named == (pairs.problem(other, signature) is None)


@pytest.mark.parametrize("kind", list(pairs.FITS))
def test_the_seed_alone_decides_the_weights_and_no_tensor_is_stored_twice(kind):
    signature = next(s for k, s in FITTING if k == kind)
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(model_of(kind, signature).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    pointers = [tensor.untyped_storage().data_ptr() for tensor in states[0].values()]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_norms_train_on_a_share_of_one_sample_too(kind, norm):
    signature = Signature(input_kind="image", input_shape=(1, 2, 2), target_kind="class", num_classes=3)
    model = model_of(kind, signature, norm=norm)
    images = torch.rand(8, 1, 2, 2)
    model(images).sum().backward()
    assert model(images[:1]).isfinite().all()
    is_batch = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert is_batch == (norm == "batch")


def test_a_large_image_does_not_make_a_large_hidden_layer():
    signature = Signature(input_kind="image", input_shape=(3, 64, 48), target_kind="class", num_classes=3)
    model = model_of("cnn", signature)
    assert model(torch.rand(1, 3, 64, 48)).shape == (1, 3)
    assert model.get_parameter("head.1.weight").shape == (8, 4 * 8 * 8)


@pytest.mark.parametrize("kind", ["transformer", "rnn", "gru", "lstm"])
@pytest.mark.parametrize("target", ["class", "tokens"])
def test_what_stands_in_padding_changes_nothing(kind, target):
    torch.manual_seed(0)
    model = model_of(kind, signature_of("text", target)).eval()
    text = torch.randint(256, (2, STEPS))
    text[0, 7:] = 256
    short = model(text[:1, :7])
    outputs = model(text)[:1]
    torch.testing.assert_close(outputs if target == "class" else outputs[:, :7], short)
    model.get_submodule("steps.front").weight.data[256] += 100  # type: ignore
    torch.testing.assert_close(model(text)[:1, : short.shape[1]], outputs[:, : short.shape[1]])


@pytest.mark.parametrize("kind", ["transformer", "gru"])
def test_text_of_padding_alone_is_finite(kind):
    model = model_of(kind, signature_of("text", "class"))
    outputs = model(torch.full((2, STEPS), 256))
    outputs.sum().backward()
    assert outputs.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["gpt", "gru"])
def test_no_step_sees_the_tokens_after_it(kind):
    model = model_of(kind, signature_of("tokens", "tokens")).eval()
    tokens = torch.randint(256, (1, STEPS))
    changed = tokens.clone()
    changed[:, 6:] = 7
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :6], before[:, :6])
    assert not torch.allclose(after[:, 6:], before[:, 6:])


def test_a_gpt_starts_within_a_nat_of_the_uniform_guess_and_has_one_embedding():
    signature = signature_of("tokens", "tokens")
    model = model_of("gpt", signature, width=64, num_layers=4)
    tokens, following = torch.randint(256, (2, 16, STEPS))
    loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
    assert loss.item() == pytest.approx(math.log(VOCABULARY), abs=1.0)
    assert [key for key, value in model.state_dict().items() if value.shape == (VOCABULARY, 64)] == [
        "tokens.weight"
    ]


def test_dropout_is_drawn_in_training_and_not_in_evaluation():
    signature = signature_of("tokens", "tokens")
    model, tokens = model_of("gpt", signature, dropout=0.5), torch.randint(256, (1, STEPS))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))
