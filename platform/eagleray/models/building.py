"""From a spec and a signature to a module."""

from __future__ import annotations

from typing import Any

from torch import nn

from eagleray.errors import SpecError
from eagleray.models import pairs
from eagleray.models.cnn import Cnn
from eagleray.models.gpt import Gpt
from eagleray.models.mlp import Mlp
from eagleray.models.recurrent import Recurrent
from eagleray.models.transformer import Transformer
from eagleray.specs import Signature
from eagleray.specs.functions import import_function, told
from eagleray.specs.model import CnnModel, GptModel, MlpModel, ModelSpec, ModuleModel, RecurrentModel


def build(spec: ModelSpec, signature: Signature) -> nn.Module:
    """The model, on the CPU, in float32 and training mode; `forward(inputs)` takes the signature's batch.

    Returns [B, num_classes], [B, V] or [B, T, vocabulary]. Weights are drawn from torch's global generator:
    equal after `torch.manual_seed`, on every rank.

    Raises:
        SpecError: the model does not take such data (names those that do), or the user's own function is
            missing, fails on its arguments, or returns something else than a module.
    """
    if isinstance(spec, ModuleModel):
        return _from_function(spec, signature)
    pairs.check(spec.kind, signature)
    if isinstance(spec, MlpModel):
        return Mlp(spec, signature)
    if isinstance(spec, CnnModel):
        return Cnn(spec, signature)
    if isinstance(spec, RecurrentModel):
        return Recurrent(spec, signature)
    return Gpt(spec, signature) if isinstance(spec, GptModel) else Transformer(spec, signature)


def _from_function(spec: ModuleModel, signature: Signature) -> nn.Module:
    """What the user's own function returns. Raises: SpecError."""
    arguments: dict[str, Any] = dict(spec.arguments)
    if spec.pass_signature:
        arguments["signature"] = signature
    try:
        function = import_function(spec.function, f"model.function {spec.function!r}", SpecError)
        model = function(**arguments)
    except TypeError as error:
        hint = "; a function that takes no `signature` needs pass_signature = false" * spec.pass_signature
        raise SpecError(
            f"model.function {spec.function!r}, called with {sorted(arguments)}: {error}{hint}"
        ) from error
    except SystemExit as error:
        raise SpecError(f"model.function {spec.function!r} raised {told(error)}") from error
    if not isinstance(model, nn.Module):
        found = type(model).__name__
        raise SpecError(
            f"model.function {spec.function!r} returned {found}; it must return a torch.nn.Module"
        )
    return model
