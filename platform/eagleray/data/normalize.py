"""Zero mean and unit variance per feature or channel, measured on the training part only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from eagleray.data.parts import Array
from eagleray.errors import DataError
from eagleray.specs import Normalization
from eagleray.specs.signature import InputKind

_PIECE_ELEMENTS = 1 << 16


def measure(chunks: Iterable[Array]) -> Normalization:
    """Mean and standard deviation over the samples (and pixels) of `chunks` of inputs [B, C, ...].

    Memory: about 2 MiB, whatever the chunks' size. A feature that does not vary gets a deviation of 1.

    Source: Chan, Golub, LeVeque (1979), "Updating formulae and a pairwise algorithm": merging of two parts.
    """
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for chunk in _pieces(chunks):
        values = chunk.astype(np.float64)
        axes = (0, *range(2, values.ndim))
        num = values.size // values.shape[1]
        chunk_mean = values.mean(axis=axes)
        centred = values - chunk_mean.reshape(_per_channel(values.ndim))
        delta, total = chunk_mean - mean, count + num
        squares = squares + np.square(centred).sum(axis=axes) + delta**2 * (count * num / total)
        mean, count = mean + delta * (num / total), total
    std = np.sqrt(squares / count)
    # In float32, what is applied: equal on machines whose sums differ in the last bit.
    std = np.where(std > 1e-12 * np.maximum(1, np.abs(mean)), std, 1.0).astype(np.float32)
    return Normalization(mean=tuple(mean.astype(np.float32).tolist()), std=tuple(std.tolist()))


def apply(inputs: Array, normalization: Normalization | None) -> Array:
    """`(inputs - mean) / std` per feature or channel, float32; `inputs` itself where there is none."""
    if normalization is None:
        return inputs
    shape = _per_channel(inputs.ndim)
    mean = np.array(normalization.mean, np.float32).reshape(shape)
    std = np.array(normalization.std, np.float32).reshape(shape)
    return (inputs - mean) / std


def check_kind(normalize: str, input_kind: InputKind) -> None:
    """Raises: DataError if the input has neither features nor channels."""
    if normalize != "none" and input_kind not in ("tabular", "image"):
        raise DataError(
            f"data.normalize = {normalize!r} is for tabular and image input, and this is {input_kind}; "
            "take it out (audio is normalised per clip by the models' log-mel front end)"
        )


def _pieces(chunks: Iterable[Array]) -> Iterator[Array]:
    for chunk in chunks:
        num_rows = max(1, _PIECE_ELEMENTS // max(1, chunk[0].size))
        for start in range(0, len(chunk), num_rows):
            yield chunk[start : start + num_rows]


def _per_channel(num_dimensions: int) -> tuple[int, ...]:
    return (1, -1) + (1,) * (num_dimensions - 2)
