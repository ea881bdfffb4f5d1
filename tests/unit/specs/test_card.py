import pytest
from pydantic import ValidationError

from eagleray.specs import Architecture, ModelCard
from eagleray.specs.card import REGISTERED
from eagleray.specs.model import GptModel, ModuleModel
from support.cards import MODELS, card


def described(tensors):
    return {tensor.name: (tensor.datatype, tensor.shape) for tensor in tensors}


@pytest.mark.parametrize(
    ("kind", "inputs", "outputs"),
    [
        (
            "image",
            {"image": ("FP32", (-1, 1, 8, 8))},
            {"label": ("BYTES", (-1,)), "class": ("INT64", (-1,)), "probabilities": ("FP32", (-1, 3))},
        ),
        ("tabular", {"features": ("FP32", (-1, 4))}, {"value": ("FP32", (-1, 2))}),
        (
            "audio",
            {"audio": ("FP32", (-1, 1600))},
            {"label": ("BYTES", (-1,)), "class": ("INT64", (-1,)), "probabilities": ("FP32", (-1, 2))},
        ),
        (
            "text",
            {"text": ("BYTES", (-1,))},
            {"label": ("BYTES", (-1,)), "class": ("INT64", (-1,)), "probabilities": ("FP32", (-1, 2))},
        ),
        ("tokens", {"tokens": ("INT64", (-1, -1))}, {"logits": ("FP32", (-1, -1, 258))}),
    ],
)
def test_inputs_and_outputs_follow_from_the_signature(kind, inputs, outputs):
    assert described(card(kind).inputs) == inputs
    assert described(card(kind).outputs) == outputs


@pytest.mark.parametrize("kind", MODELS)
def test_a_card_is_read_as_it_was_written(kind):
    written = card(kind)
    read = ModelCard.model_validate_json(written.model_dump_json())
    assert read == written
    assert read.architecture.spec == MODELS[kind]


def test_only_a_gpt_with_a_tokenizer_is_generative():
    assert [kind for kind in MODELS if card(kind).is_generative] == ["tokens"]
    without = card("tokens").signature.model_copy(update={"tokenizer": None})
    assert not card("tokens", signature=without).is_generative


def test_a_users_own_function_is_not_registered():
    own = ModuleModel(kind="module", function="net:build", arguments={"a": 1}, pass_signature=False)
    architecture = Architecture.of(own)
    assert not architecture.is_registered
    assert architecture.spec == own
    assert Architecture.of(GptModel(kind="gpt")).function == REGISTERED


@pytest.mark.parametrize(
    "arguments",
    [{}, {"spec": {"kind": "mlp"}, "more": 1}, {"spec": {"kind": "none"}}, {"spec": None}, {"signature": 1}],
)
def test_a_registered_architecture_has_a_spec_of_ours(arguments):
    with pytest.raises(ValidationError):
        Architecture(arguments=arguments)


def test_a_registered_architecture_cannot_hide_a_users_function():
    with pytest.raises(ValidationError, match="a model of ours"):
        Architecture(arguments={"spec": {"kind": "module", "function": "os:system"}})


@pytest.mark.parametrize("name", ["a#b", "a/b", "..", ".a", "A", "", "x" * 64, "x" * 300, "a b", "ä", "a\n"])
def test_a_name_that_no_path_or_url_takes_is_refused(name):
    with pytest.raises(ValidationError):
        card(name=name)


def test_metrics_are_finite():
    with pytest.raises(ValidationError):
        card(metrics={"loss": float("nan")})
