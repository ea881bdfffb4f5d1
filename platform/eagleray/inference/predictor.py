"""`Predictor`: raw arrays in, the card's outputs out; evaluation and services share it, so labels agree.

Names with shapes: B samples, C classes, V values, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from eagleray.data import ByteTokenizer, normalize
from eagleray.device import Place
from eagleray.errors import InputError, PackageError
from eagleray.packaging import ModelPackage
from eagleray.protocol import tensors
from eagleray.specs import ModelCard, Signature

Array = NDArray[Any]

CHUNK = 256
"""Samples of one forward pass."""
NEAR_TIE = {"cpu": 1e-5, "cuda": 1e-2}
"""Two best classes that are closer, relative to the largest logit, may change places with the batch's size:
sums in another order differ by 1e-7 on a CPU, by 1e-3 with TF32."""


class Predictor:
    """A package's model on a device. Not for two threads at once."""

    def __init__(self, package: ModelPackage, place: Place | None = None) -> None:
        """Build the module, load its weights, and put it on the place's device (the CPU where not given).

        Raises:
            PackageError: as `ModelPackage.build_module`.
        """
        self.card: ModelCard = package.card
        self._url = package.url
        self._device = torch.device("cpu") if place is None else place.device
        self.module: nn.Module = package.build_module().to(self._device)
        """The model itself, on its device, in evaluation mode (for generation)."""
        floats = [tensor.dtype for tensor in self.module.parameters() if tensor.is_floating_point()]
        self._dtype = floats[0] if floats else torch.float32

    def check(self, inputs: Mapping[str, Array]) -> int:
        """The number of samples of `inputs`.

        Raises:
            InputError: a wrong or missing name, dtype, shape, a NaN, text that is no Unicode, a token that is
                not in the vocabulary, too many tokens, or no sample at all.
        """
        tensors.check(inputs, self.card.inputs)
        for name, array in inputs.items():
            _check_values(name, array, self.card.signature)
        return len(next(iter(inputs.values())))

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The card's outputs for raw inputs (as `ModelCard.inputs` names them), each with the batch first.

        `label` is an array of str objects, `class` int64, the others float32. A sample's label does not
        depend on the batch it comes in; its numbers may, in their last bits.

        Raises:
            InputError: as `check`.
            PackageError: the model (a user's own) returned something else than its card says.
        """
        self.check(inputs)
        return self.predict_encoded(self.encode(inputs))

    def encode(self, inputs: Mapping[str, Array]) -> Array:
        """The model's own input for raw inputs that `check` accepts: normalised, tokenised, padded."""
        signature = self.card.signature
        (array,) = inputs.values()
        if signature.input_kind == "text":
            return _tokenised(array, signature)
        if signature.input_kind == "tokens":
            return array if signature.target_kind == "tokens" else _padded(array, signature)
        return normalize.apply(array, signature.normalization)

    def predict_encoded(self, encoded: Array) -> dict[str, Array]:
        """As `predict`, for inputs as a dataset's parts yield them (normalised and tokenised already)."""
        chunks = [self._logits(encoded[start : start + CHUNK]) for start in range(0, len(encoded), CHUNK)]
        logits = np.concatenate(chunks)
        match self.card.signature.target_kind:
            case "class":
                return self._classified(encoded, self._shaped(logits, 2))
            case "tokens":
                return {"logits": self._shaped(logits, 3)}
            case "value":
                return {"value": self._shaped(logits.reshape(len(logits), -1), 2)}

    def warm_up(self, batch_size: int = 1) -> None:
        """Run once on zeros, so that the first request need not pay for it."""
        signature = self.card.signature
        dtype = np.int64 if signature.input_kind in ("text", "tokens") else np.float32
        self._logits(np.zeros((batch_size, *signature.input_shape), dtype))

    def _logits(self, encoded: Array) -> Array:
        """What the module returns, float32 on the CPU."""
        # A view of a request's bytes may start anywhere, and is not for a model to write to.
        inputs = torch.from_numpy(np.require(encoded, requirements=["C", "A", "W"])).to(self._device)
        if inputs.is_floating_point():
            inputs = inputs.to(self._dtype)
        with torch.no_grad():
            outputs = self.module(inputs)
        if not isinstance(outputs, torch.Tensor) or len(outputs) != len(encoded):
            raise PackageError(
                f"{self._url}: the model returned no tensor with a row for each sample "
                f"({type(outputs).__name__}); it must return one"
            )
        return outputs.float().cpu().numpy()

    def _shaped(self, outputs: Array, num_dimensions: int) -> Array:
        """`outputs` itself, where it has the shape of the card's last output."""
        expected = self.card.outputs[-1].shape
        if outputs.ndim != num_dimensions or outputs.shape[-1] != expected[-1]:
            raise PackageError(
                f"{self._url}: the model returned an array of shape {list(outputs.shape)}, and its card says "
                f"{list(expected)}; its architecture does not fit its signature"
            )
        return outputs

    def _classified(self, encoded: Array, logits_BC: Array) -> dict[str, Array]:
        classes = logits_BC.argmax(axis=1)
        for index in _near_ties(logits_BC, NEAR_TIE[self._device.type]):
            classes[index] = self._logits(encoded[index : index + 1])[0].argmax()
        signature = self.card.signature
        labels = signature.labels or tuple(map(str, range(logits_BC.shape[1])))
        return {
            "label": np.array(labels, object)[classes],
            "class": classes.astype(np.int64),
            "probabilities": torch.from_numpy(logits_BC).softmax(dim=1).numpy(),
        }


def _near_ties(logits_BC: Array, tolerance: float) -> Array:
    """Rows whose two best classes are as good as equal: each is then judged by itself, whatever its batch."""
    second, best = np.partition(logits_BC, -2, axis=1)[:, -2:].T
    return np.flatnonzero(best - second <= tolerance * np.abs(logits_BC).max(axis=1))


def _check_values(name: str, array: Array, signature: Signature) -> None:
    if array.dtype.kind == "f":
        is_bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if is_bad.any():
            raise InputError(
                f"input {name!r}: sample {int(is_bad.argmax())} has NaN or infinite values; give finite ones"
            )
    elif array.dtype.kind == "i":
        _check_tokens(name, array, signature)
    else:
        _as_bytes(array)


def _check_tokens(name: str, tokens_BT: Array, signature: Signature) -> None:
    limit, (length,) = signature.vocabulary_size, signature.input_shape
    assert limit is not None  # a signature of tokens has it
    if tokens_BT.shape[1] > length:
        raise InputError(
            f"input {name!r}: {tokens_BT.shape[1]} tokens a sample; the model takes {length} at most"
        )
    is_bad = (tokens_BT < 0) | (tokens_BT >= limit)
    if is_bad.any():
        raise InputError(
            f"input {name!r}: token {int(tokens_BT[is_bad][0])} in sample {int(is_bad.any(axis=1).argmax())} "
            f"is not in the vocabulary (0 to {limit - 1})"
        )
    if tokens_BT.shape[1] < length and signature.target_kind != "tokens" and signature.padding_token is None:
        raise InputError(
            f"input {name!r}: {tokens_BT.shape[1]} tokens a sample; the model takes exactly {length} (its "
            "data had no padding)"
        )


def _as_bytes(texts: Array) -> list[Array]:
    """The tokens of each text. Raises: InputError for a lone surrogate, which no UTF-8 has."""
    rows = []
    for index, text in enumerate(texts):
        try:
            rows.append(ByteTokenizer().encode(str(text)))
        except UnicodeEncodeError as error:
            raise InputError(f"text {index} holds {text[error.start]!r}, which is no character") from error
    return rows


def _tokenised(texts: Array, signature: Signature) -> Array:
    """Tokens [B, T] of texts, cut and padded as the training data was."""
    (length,), padding = signature.input_shape, ByteTokenizer.padding_token
    tokens_BT = np.full((len(texts), length), padding, np.int64)
    for row, tokens in zip(tokens_BT, _as_bytes(texts), strict=True):
        row[: len(tokens[:length])] = tokens[:length]
    return tokens_BT


def _padded(tokens_BT: Array, signature: Signature) -> Array:
    """Tokens [B, T] at the signature's length."""
    missing = signature.input_shape[0] - tokens_BT.shape[1]
    if missing == 0:
        return tokens_BT
    assert signature.padding_token is not None  # `check` refused it
    return np.pad(tokens_BT, ((0, 0), (0, missing)), constant_values=signature.padding_token)
