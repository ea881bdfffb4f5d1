"""Which model takes which input and which target, and the sentence for those that do not fit.

model          inputs                                                       targets
mlp            tabular, image, audio (log-mel), all flattened               class, value
cnn            image, audio (the log-mel spectrogram as an image)           class, value
rnn gru lstm   text, tokens, audio (frames), image (rows), tabular [T, F]   class, value, tokens
transformer    the same                                                     class, value, tokens
gpt            text, tokens                                                 tokens

Token targets need text or tokens as input. A flat table row [F] has no time steps: recurrent models and the
transformer refuse it, and take a row of shape (steps, features), which a user's own data function can return.
"""

from __future__ import annotations

from typing import NamedTuple

from eagleray.errors import SpecError
from eagleray.specs import Signature


class Fit(NamedTuple):
    """What one kind of model takes."""

    inputs: tuple[str, ...]
    targets: tuple[str, ...]


_SEQUENCE = Fit(("text", "tokens", "audio", "image", "tabular"), ("class", "value", "tokens"))
FITS = {
    "mlp": Fit(("tabular", "image", "audio"), ("class", "value")),
    "cnn": Fit(("image", "audio"), ("class", "value")),
    "rnn": _SEQUENCE,
    "gru": _SEQUENCE,
    "lstm": _SEQUENCE,
    "transformer": _SEQUENCE,
    "gpt": Fit(("text", "tokens"), ("tokens",)),
}


def problem(kind: str, signature: Signature) -> str | None:
    """Why the model cannot take the dataset, in words; None where it can."""
    given, target = signature.input_kind, signature.target_kind
    fit = FITS[kind]
    if given not in fit.inputs:
        return f"does not take {given} input (it takes {', '.join(fit.inputs)})"
    if target not in fit.targets:
        return f"does not predict a {target} target (it predicts {', '.join(fit.targets)})"
    if target == "tokens" and given not in ("text", "tokens"):
        return f"predicts tokens from text or tokens, not from {given} input"
    if given == "tabular" and fit is _SEQUENCE and len(signature.input_shape) != 2:
        return f"needs rows of shape (steps, features), and these have shape {signature.input_shape}"
    return None


def check(kind: str, signature: Signature) -> None:
    """Raises: SpecError if the model cannot take the dataset; names the models that can."""
    found = problem(kind, signature)
    if found is None:
        return
    fitting = [other for other in FITS if problem(other, signature) is None]
    way_out = (
        f"use one of: {', '.join(fitting)}" if fitting else 'no built-in model does; use kind = "module"'
    )
    raise SpecError(
        f"model.kind {kind!r} {found}; "
        f"for {signature.input_kind} input and a {signature.target_kind} target {way_out}"
    )
