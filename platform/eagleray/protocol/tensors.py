"""Tensors of the Open Inference protocol v2: datatypes, and arrays to and from their JSON form.

In memory a tensor is a numpy array; BYTES is an object array of str (UTF-8 text). JSON has no NaN and no
infinity, and neither do we, in no form: one in a request is refused by name, one in an answer is the model's
error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np

from eagleray.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}
"""Datatype to numpy's; of the protocol's datatypes only BF16 is missing, which numpy does not have."""

_LIMITS = {dtype: np.iinfo(dtype.str) for dtype in DTYPES.values() if dtype.kind in "iu"}
_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
MAX_DIMENSIONS = 32
_FEW = 32
_MAX_VALUES = 2**40
"""Of one tensor, zeros among its sizes aside: beyond it numpy, and Python's own printing, raise."""
_EXPECTED = {"b": (bool,), "i": (int,), "u": (int,), "f": (float, int), "O": (str,)}
_WORDS = {
    "b": "true or false",
    "i": "whole numbers",
    "u": "whole numbers >= 0",
    "f": "numbers",
    "O": "strings",
}


class TensorInfo(Protocol):
    """What a model card says of one tensor."""

    @property
    def name(self) -> str:
        """Unique in the card."""
        ...

    @property
    def datatype(self) -> str:
        """A key of `DTYPES`."""
        ...

    @property
    def shape(self) -> Sequence[int]:
        """-1 where any size will do."""
        ...


def datatype_of(array: Array) -> str:
    """The protocol's name of the array's type. Raises: InputError where it has none."""
    dtype = array.dtype
    found = _DATATYPES.get(dtype) or _DATATYPES.get(dtype.newbyteorder("="))
    if found is None and dtype.kind in "US":
        return "BYTES"
    if found is None:
        raise InputError(f"arrays of {array.dtype} have no datatype; give one of: {', '.join(DTYPES)}")
    return found


class Head(NamedTuple):
    """All of a tensor but its values, and checked."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    what: str
    """For messages about its values."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """In memory."""
        return DTYPES[self.datatype]


def head(tensor: Any, what: str, *required: str) -> Head:
    """Name, datatype and shape of an input or an output in JSON, which has all keys that are `required` too.

    Raises:
        InputError: a field is missing or wrong.
    """
    if not isinstance(tensor, Mapping):
        raise InputError(f"{what}: expected an object with name, shape, datatype and data")
    for key in ("name", "shape", "datatype", *required):
        if key not in tensor:
            raise InputError(f"{what}: {key!r} is required and missing")
    name, datatype = tensor["name"], tensor["datatype"]
    if not isinstance(name, str):
        raise InputError(f"{what}: name is {shown(name)}; give a string")
    what = f"{what} {shown(name)}"
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise InputError(f"{what}: datatype {shown(datatype)} is not known; give one of: {', '.join(DTYPES)}")
    return Head(name, datatype, checked_shape(tensor["shape"], what), what)


def from_json(tensor: Any, what: str) -> tuple[str, Array]:
    """Name and array of a request's input or a response's output; `what` names it in messages ("inputs[0]").

    Raises:
        InputError: a field is missing or wrong, or count, shape, datatype and data do not fit each other.
    """
    found = head(tensor, what, "data")
    flat = _flat(tensor["data"], found.shape, found.what)
    wanted = math.prod(found.shape)
    if len(flat) != wanted:
        raise InputError(
            f"{found.what}: shape {list(found.shape)} holds {wanted} values, and data has {len(flat)}"
        )
    what = f"{found.what}: datatype {found.datatype}"
    return found.name, _array(flat, found.dtype, what).reshape(found.shape)


def to_json(name: str, array: Array) -> dict[str, Any]:
    """The tensor as plain values, its data flat. Raises: InputError for NaN, infinity or a strange type."""
    datatype = datatype_of(array)
    check_finite(name, array)
    data = [text(value) for value in array.ravel()] if datatype == "BYTES" else array.ravel().tolist()
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": data}


def check_finite(name: str, array: Array) -> None:
    """Raises: InputError for NaN or infinity in an array that is to be sent."""
    if array.dtype.kind != "f":
        return
    # numpy looks at many in the time that Python takes for some dozens, and takes a microsecond for one.
    is_few = array.size <= _FEW
    if not (all(map(math.isfinite, array.ravel().tolist())) if is_few else np.isfinite(array).all()):
        raise InputError(f"{name!r} has NaN or infinite values; only finite ones are carried")


def _fits(found: Sequence[int], wanted: Sequence[int]) -> bool:
    if len(found) != len(wanted):
        return False
    for have, want in zip(found, wanted, strict=True):  # noqa: SIM110 - by `all` it takes thrice as long
        if want not in (have, -1):
            return False
    return True


def check(inputs: Mapping[str, Array], expected: Sequence[TensorInfo]) -> None:
    """Hold arrays against what a model card expects.

    Raises:
        InputError: a name is missing or unknown, a datatype or a shape is another, or batches differ.
    """
    known = {tensor.name: tensor for tensor in expected}
    if unknown := [name for name in inputs if name not in known]:
        raise InputError(f"input {shown(unknown[0])} is not known; this model takes: {described(expected)}")
    batches: dict[str, int] = {}
    for name, tensor in known.items():
        if name not in inputs:
            raise InputError(f"input {name!r} is missing; this model takes: {described(expected)}")
        array, shape = inputs[name], tensor.shape
        if datatype_of(array) != tensor.datatype:
            raise InputError(f"input {name!r}: datatype {datatype_of(array)}, expected {tensor.datatype}")
        found = array.shape
        if not _fits(found, shape):
            raise InputError(f"input {name!r}: shape {list(found)}, expected {list(shape)} (-1: any size)")
        if 0 in found:
            raise InputError(f"input {name!r}: shape {list(found)} holds nothing; give one sample or more")
        if shape and shape[0] == -1:
            batches[name] = found[0]
    if len(batches) > 1 and len(set(batches.values())) > 1:
        sizes = ", ".join(f"{name!r} {size}" for name, size in batches.items())
        raise InputError(f"the inputs' first dimensions, the batch, differ: {sizes}")


def described(tensors: Iterable[TensorInfo]) -> str:
    """For messages: name, datatype and shape of each."""
    return ", ".join(f"{tensor.name!r} {tensor.datatype} {list(tensor.shape)}" for tensor in tensors)


def checked_shape(shape: Any, what: str) -> tuple[int, ...]:
    """The shape of a tensor in JSON. Raises: InputError where it is none, or one that no body can hold."""
    is_shape = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not is_shape or len(shape) > MAX_DIMENSIONS:
        raise InputError(
            f"{what}: shape is {shown(shape)}; give a list of up to {MAX_DIMENSIONS} whole numbers >= 0"
        )
    if math.prod(max(1, size) for size in shape) > _MAX_VALUES:
        raise InputError(f"{what}: shape is {shown(shape)}, more than any body holds; give the data's own")
    return tuple(shape)


def _flat(data: Any, shape: tuple[int, ...], what: str) -> list[Any]:
    """The values in row-major order: data is flat, or nested exactly as `shape` says."""
    if not isinstance(data, list):
        raise InputError(f"{what}: data is {shown(data)}; give a list")
    level, nested = data, [len(data)]
    while level and type(level[0]) is list:
        lengths = {len(row) if type(row) is list else None for row in level}
        if len(lengths) > 1:
            raise InputError(f"{what}: data is ragged: its rows are not all lists of one length")
        nested.append(len(level[0]))
        level = list(chain.from_iterable(level))
    if len(nested) > 1 and tuple(nested) != shape:
        raise InputError(f"{what}: data is nested as {shown(nested)}, and shape says {list(shape)}")
    return level


def _array(flat: list[Any], dtype: np.dtype[Any], what: str) -> Array:
    expected = _EXPECTED[dtype.kind]
    if not set(map(type, flat)) <= set(expected):
        index = next(i for i, value in enumerate(flat) if type(value) not in expected)
        raise InputError(
            f"{what} takes {_WORDS[dtype.kind]}, and data has {shown(flat[index])} (value {index})"
        )
    if dtype.kind == "O":
        return _texts(flat, what)
    if dtype.kind in "iu":
        return _whole(flat, dtype, what)
    try:
        with np.errstate(over="ignore"):  # what the type cannot hold becomes infinite, and is found
            array = np.array(flat, dtype)
    except OverflowError:
        array = np.array([math.inf])
    if not np.isfinite(array).all():
        raise InputError(f"{what} cannot hold a value of data: it is out of range, NaN or infinite")
    return array


def _whole(flat: list[int], dtype: np.dtype[Any], what: str) -> Array:
    limits = _LIMITS[dtype]
    if flat and not (limits.min <= min(flat) and max(flat) <= limits.max):
        wrong = next(value for value in flat if not limits.min <= value <= limits.max)
        raise InputError(f"{what} holds {limits.min} to {limits.max}, and data has {shown(wrong)}")
    return np.array(flat, dtype)


def _texts(flat: list[str], what: str) -> Array:
    try:
        "".join(flat).encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} takes UTF-8 text, and data has half a surrogate pair") from None
    array = np.empty(len(flat), object)
    array[:] = flat
    return array


def text(value: Any) -> str:
    """One value of a BYTES tensor. Raises: InputError where it is none."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{shown(value)} is not UTF-8 text (byte {error.start})") from None
    raise InputError(f"{shown(value)} is no text: BYTES takes str, or bytes that are UTF-8")


def shown(value: Any) -> str:
    """For messages: what it is, or how it begins."""
    try:
        found = repr(value)
    except RecursionError:  # JSON may be nested as deeply as the stack is, and this is deeper in it
        return f"a {type(value).__name__} that is nested too deeply"
    return found if len(found) <= 60 else found[:57] + "..."
