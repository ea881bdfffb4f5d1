"""Requests as one forward pass: which fit together, how their arrays are joined, and each one's rows back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eagleray.specs import ModelCard

Array = NDArray[Any]
Inputs = Mapping[str, Array]
Outputs = dict[str, Array]

_MASKED = ("rnn", "gru", "lstm", "transformer")
"""Of our architectures: those that do not look at padding, also where they predict every token."""
_SHORTEST_BUCKET = 16


class Joining(Protocol):
    """How requests share a pass. Every array has its samples first."""

    def bucket(self, inputs: Inputs) -> Hashable:
        """Requests with the same one may share a pass, and cost about the same for each sample."""
        ...

    def join(self, requests: Sequence[Inputs]) -> Inputs:
        """The arrays of all, one behind the other."""
        ...

    def split(self, outputs: Mapping[str, Array], requests: Sequence[Inputs]) -> list[Outputs]:
        """What each would have got alone; views."""
        ...


def joining_of(card: ModelCard) -> Joining:
    """How requests for this model share a pass, so that none gets another answer than alone."""
    signature = card.signature
    if signature.input_kind != "tokens":
        return Alike()  # texts are of one length once they are tokens
    if signature.target_kind != "tokens":
        padding = signature.padding_token
        # Whatever the model is, each is filled up to the full length before it runs.
        return Alike() if padding is None else Padded("tokens", padding, is_one_bucket=True)
    from eagleray.models.sizes import padding_token

    kind = card.architecture.spec.kind if card.architecture.is_registered else "module"
    padding = padding_token(signature)
    if kind == "gpt":
        return Padded("tokens", padding or 0)  # no token looks at later ones, whatever they are
    if kind in _MASKED and padding is not None:
        return Padded("tokens", padding)
    return Alike()


def num_samples(inputs: Inputs) -> int:
    """Samples of a request."""
    return len(next(iter(inputs.values())))


class Alike:
    """Only arrays of the same shapes share a pass."""

    def bucket(self, inputs: Inputs) -> Hashable:
        """As Joining."""
        if len(inputs) == 1:
            [(name, array)] = inputs.items()
            return name, array.dtype, array.shape[1:]
        return tuple((name, array.dtype, array.shape[1:]) for name, array in sorted(inputs.items()))

    def join(self, requests: Sequence[Inputs]) -> Inputs:
        """As Joining."""
        if len(requests) == 1:
            return requests[0]
        return {name: np.concatenate([inputs[name] for inputs in requests]) for name in requests[0]}

    def split(self, outputs: Mapping[str, Array], requests: Sequence[Inputs]) -> list[Outputs]:
        """As Joining."""
        if len(requests) == 1:
            return [dict(outputs)]
        found: list[Outputs] = []
        start = 0
        for inputs in requests:
            end = start + num_samples(inputs)
            found.append({name: array[start:end] for name, array in outputs.items()})
            start = end
        return found


class Padded(Alike):
    """Rows of tokens [B, T] of different lengths share a pass, filled up to the longest.

    By powers of two: else one long row would cost every short one its length. Outputs for each token
    [B, T, ...] are cut to each request's own length again.
    """

    def __init__(self, name: str, padding: int, *, is_one_bucket: bool = False) -> None:
        """Args: name: Of the input. padding: The token. is_one_bucket: The model fills all up by itself."""
        self._name, self._padding, self._is_one_bucket = name, padding, is_one_bucket

    def bucket(self, inputs: Inputs) -> Hashable:
        """As Joining."""
        if self._is_one_bucket:
            return self._name
        return max(_SHORTEST_BUCKET, 1 << (inputs[self._name].shape[1] - 1).bit_length())

    def join(self, requests: Sequence[Inputs]) -> Inputs:
        """As Joining."""
        if len(requests) == 1:
            return requests[0]
        arrays = [inputs[self._name] for inputs in requests]
        shape = (sum(map(len, arrays)), max(array.shape[1] for array in arrays))
        joined = np.full(shape, self._padding, arrays[0].dtype)
        start = 0
        for array in arrays:
            joined[start : start + len(array), : array.shape[1]] = array
            start += len(array)
        return {self._name: joined}

    def split(self, outputs: Mapping[str, Array], requests: Sequence[Inputs]) -> list[Outputs]:
        """As Joining."""
        found = super().split(outputs, requests)
        if self._is_one_bucket or len(requests) == 1:
            return found
        return [
            {name: array[:, : inputs[self._name].shape[1]] for name, array in own.items()}
            for own, inputs in zip(found, requests, strict=True)
        ]
