"""From what a user has in hand (arrays, lists, texts) to the arrays that a model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eagleray.errors import InputError
from eagleray.protocol import tensors
from eagleray.protocol.tensors import Array, TensorInfo


def prepare(inputs: Any, expected: Sequence[TensorInfo]) -> dict[str, Array]:
    """Arrays by name, each of its datatype and with the batch first.

    A model with one input takes its array alone. One sample without a batch becomes a batch of one.

    Raises:
        InputError: a name, a shape or a type is wrong, or a value would change in the model's datatype.
    """
    if not isinstance(inputs, Mapping):
        if len(expected) != 1:
            raise InputError(
                f"this model has {len(expected)} inputs; give a dict: {tensors.described(expected)}"
            )
        inputs = {expected[0].name: inputs}
    known = {tensor.name: tensor for tensor in expected}
    found = {
        name: _array(value, known[name]) if name in known else np.zeros(0) for name, value in inputs.items()
    }
    tensors.check(found, expected)
    return found


def _array(value: Any, tensor: TensorInfo) -> Array:
    try:
        array = np.asarray(value, object if tensor.datatype == "BYTES" else None)
    except (ValueError, TypeError) as error:
        raise InputError(f"input {tensor.name!r}: numpy makes no array of it: {error}") from None
    if array.ndim == len(tensor.shape) - 1:
        array = array[None]
    return array if tensor.datatype == "BYTES" else cast(array, tensor)


def cast(array: Array, tensor: TensorInfo) -> Array:
    """The array as the tensor's type. Raises: InputError where a value would become another one."""
    dtype = tensors.DTYPES[tensor.datatype]
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "biuf" or (dtype.kind != "f" and array.dtype.kind == "f"):
        raise InputError(
            f"input {tensor.name!r} takes {tensor.datatype}, and the array has {array.dtype}; convert it"
        )
    with np.errstate(over="ignore"):
        found = array.astype(dtype)
    is_same = np.isfinite(found).all() if dtype.kind == "f" else (found == array).all()
    if not is_same:
        raise InputError(f"input {tensor.name!r} has a value that {tensor.datatype} cannot hold (or NaN)")
    return found
