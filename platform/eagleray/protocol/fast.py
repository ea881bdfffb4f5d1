"""The usual inference request and answer in a fraction of the time: as binary.py, by msgspec and orjson.

Usual is a request as the specification has it: flat data, no keys beyond it, no empty tensor. Whatever else
comes is read by binary.py, which takes it or says what is wrong with it: so errors have one wording, and both
take the same bodies to the same values (tests/unit/protocol/test_fast.py).

For the platform only: the client's light install has neither msgspec nor orjson.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import numpy as np
import orjson

from eagleray.errors import InputError
from eagleray.protocol import binary, tensors
from eagleray.protocol.infer import BINARY_OUTPUT, Body, InferRequest, InferResponse
from eagleray.protocol.tensors import DTYPES, Array, Head

_FORMATS = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h",
    "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
"""Of struct, which refuses what a type cannot hold, and is quicker than np.array."""
_KINDS = {"b": bool, "i": int, "u": int, "f": float, "O": str}
_VALUES = {
    name: msgspec.json.Decoder(list[_KINDS[dtype.kind]])  # type: ignore[misc]
    for name, dtype in DTYPES.items()
}
_UNUSUAL = (
    msgspec.MsgspecError, struct.error, InputError, ValueError, KeyError, OverflowError, RecursionError
)  # fmt: skip


class _Size(msgspec.Struct, forbid_unknown_fields=True):
    binary_data_size: int


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    shape: list[Annotated[int, msgspec.Meta(ge=1)]]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
    parameters: _Size | None = None


class _Form(msgspec.Struct, forbid_unknown_fields=True):
    binary_data: bool


class _Output(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: _Form | None = None


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    inputs: list[_Tensor]
    id: str | None = None
    outputs: list[_Output] | None = None
    parameters: dict[str, bool | int | float | str | None] | None = None


_REQUEST = msgspec.json.Decoder(_Request)


def read_request(body: Body, header: str | None = None, *, quick_bytes: int | None = None) -> InferRequest:
    """As `binary.read_request`."""
    try:
        return _request(body, header, quick_bytes)
    except _UNUSUAL:
        return binary.read_request(body, header, quick_bytes=quick_bytes)


def write_response(response: InferResponse, is_binary: Callable[[str], bool]) -> binary.Written:
    """As `binary.write_response`; FP32 and FP16 have as many digits as tell them from their neighbours."""
    try:
        return binary.write_response(response, is_binary, to_json=_to_json, dumps=_dumps)
    except orjson.JSONEncodeError:  # half a surrogate pair, or another byte order
        return binary.write_response(response, is_binary)


def _request(body: Body, header: str | None, quick_bytes: int | None) -> InferRequest:
    text, rest = binary.split(body, header, quick_bytes=quick_bytes)
    if quick_bytes is not None and len(text) > quick_bytes:
        raise binary.TakesLong
    asked = _REQUEST.decode(text)
    inputs = {
        tensor.name: _array(tensor) if tensor.parameters is None else _view(tensor, rest)
        for tensor in asked.inputs
    }
    parameters = asked.parameters or {}
    if (
        len(inputs) != len(asked.inputs)
        or not inputs
        or type(parameters.get(BINARY_OUTPUT, False)) is not bool
    ):
        raise ValueError("unusual")
    rest.check_end()
    if not (outputs := asked.outputs):
        return InferRequest(inputs, (), asked.id, parameters, {})
    forms = {output.name: output.parameters.binary_data for output in outputs if output.parameters}
    return InferRequest(inputs, tuple([output.name for output in outputs]), asked.id, parameters, forms)


def _array(tensor: _Tensor) -> Array:
    values = _VALUES[tensor.datatype].decode(tensor.data)
    if len(values) != math.prod(tensor.shape) or len(tensor.shape) > tensors.MAX_DIMENSIONS:
        raise ValueError("unusual")
    array = np.empty(len(values), DTYPES[tensor.datatype])
    if tensor.datatype == "BYTES":
        array[:] = values
    else:
        struct.pack_into(f"={len(values)}{_FORMATS[tensor.datatype]}", array.data, 0, *values)
    return array if len(tensor.shape) == 1 else array.reshape(tensor.shape)


def _view(tensor: _Tensor, rest: binary.Rest) -> Array:
    if bytes(tensor.data) or tensor.datatype not in DTYPES or tensor.parameters is None:
        raise ValueError("unusual")
    shape = tensors.checked_shape(tensor.shape, "")
    return rest.array(Head(tensor.name, tensor.datatype, shape, ""), tensor.parameters.binary_data_size)


def _to_json(name: str, array: Array) -> dict[str, Any]:
    datatype = tensors.datatype_of(array)
    if datatype == "BYTES":
        data = array.ravel().tolist()
        if not set(map(type, data)) <= {str}:
            data = [tensors.text(value) for value in data]
    else:
        tensors.check_finite(name, array)
        data = np.ascontiguousarray(array).reshape(-1)
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": data}


def _dumps(values: Any) -> bytes:
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)
