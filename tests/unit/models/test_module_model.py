import pytest
import torch

from eagleray import models
from eagleray.errors import SpecError
from eagleray.specs import Signature
from eagleray.specs.model import ModuleModel

SIGNATURE = Signature(input_kind="tabular", input_shape=(5,), target_kind="class", num_classes=3)


def module(function, *, pass_signature=False, **arguments):
    return ModuleModel(kind="module", function=function, arguments=arguments, pass_signature=pass_signature)


def test_an_installed_class_is_called_with_the_arguments():
    model = models.build(module("torch.nn:Linear", in_features=5, out_features=3), SIGNATURE)
    assert model(torch.rand(2, 5)).shape == (2, 3)


def test_the_users_own_function_gets_the_signature(tmp_path, monkeypatch):
    (tmp_path / "users_own_network.py").write_text(
        "from torch import nn\n"
        "def network(signature, bias):\n"
        "    return nn.Linear(signature.input_shape[0], signature.num_classes, bias=bias)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = models.build(module("users_own_network:network", pass_signature=True, bias=False), SIGNATURE)
    assert [tuple(p.shape) for p in model.parameters()] == [(3, 5)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (module("no_such_package:f"), "cannot import 'no_such_package'.*`code`"),
        (module("torch.nn:no_such_layer"), "'torch.nn' has no function or class 'no_such_layer'"),
        (module("torch.nn:Linear"), "missing 2 required"),
        (module("torch.nn:Linear", pass_signature=True, in_features=1), "pass_signature = false"),
        (module("builtins:dict"), "returned dict; it must return a torch.nn.Module"),
    ],
)
def test_a_function_that_gives_no_module_is_refused(spec, message):
    with pytest.raises(SpecError, match=message):
        models.build(spec, SIGNATURE)
