"""Inference requests and responses of the Open Inference protocol v2, to and from JSON.

The values hold arrays, whatever carried them: binary.py is the same with raw bytes behind the JSON.

Source: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from eagleray.errors import InputError
from eagleray.protocol import tensors
from eagleray.protocol.tensors import Array

BINARY_OUTPUT, BINARY_DATA = "binary_data_output", "binary_data"
"""Parameters of the binary tensor extension: of a request, for all its outputs; and of one output."""

Body = bytes | bytearray | memoryview
Reader = Callable[[Any, str], tuple[str, Array]]
"""As `tensors.from_json`."""
_RAW = (
    "raw bytes behind the JSON need the header Inference-Header-Content-Length; whole pictures and sounds "
    "are for /models/NAME:predict"
)
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class InferRequest(NamedTuple):
    """What a client asks of one model version."""

    inputs: Mapping[str, Array]
    outputs: tuple[str, ...] = ()
    """Names of the wanted ones; none named, all are wanted."""
    id: str | None = None
    parameters: Mapping[str, Any] = _NOTHING
    binary_outputs: Mapping[str, bool] = _NOTHING
    """Whether an output is to come as raw bytes, for those that say so themselves (`binary_data`)."""

    def is_binary(self, output: str) -> bool:
        """Whether this output is to come as raw bytes behind the answer's JSON."""
        return self.binary_outputs.get(output, self.parameters.get(BINARY_OUTPUT, False))


class InferResponse(NamedTuple):
    """The model version's answer."""

    model_name: str
    model_version: str
    outputs: Mapping[str, Array]
    id: str | None = None


def loads(body: Body, what: str = "the body") -> Any:
    """Strict JSON: UTF-8, no NaN, no infinity. Raises: InputError that says what is wrong, and where."""
    try:
        text = str(body, "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8 text (byte {error.start}: {error.reason})") from None
    if not text.strip():
        raise InputError(f"{what} is empty; send JSON")
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{what} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except RecursionError:
        raise InputError(f"{what} is not usable: its JSON is nested too deeply") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise InputError(f"{what} is not usable: {error}") from None


def loads_alone(body: Body) -> Any:
    """As `loads`, of a body that is to be JSON and nothing else: who sends other bytes is told how to."""
    try:
        return loads(body)
    except InputError as error:
        is_raw = any(sign in str(error) for sign in ("not UTF-8", "Extra data"))
        raise InputError(f"{error}; {_RAW}" if is_raw else str(error)) from None


def read_request(body: Body) -> InferRequest:
    """The request in a JSON body. Raises: InputError."""
    return request_of(loads_alone(body), tensors.from_json)


def request_of(values: Any, read: Reader) -> InferRequest:
    """The request in these values, whose tensors `read` reads. Raises: InputError."""
    values = _object(values)
    inputs = _tensors(values, "inputs", read)
    request_id = values.get("id")
    if request_id is not None and not is_text(request_id):
        raise InputError("id: expected a string of valid Unicode")
    parameters = values.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise InputError("parameters: expected an object")
    _check_flag(parameters, BINARY_OUTPUT, "parameters")
    wanted, binary = _wanted(values.get("outputs"))
    return InferRequest(inputs, wanted, request_id, parameters, binary)


def write_request(request: InferRequest) -> bytes:
    """The request as a JSON body. Raises: InputError for values that JSON cannot carry."""
    return dumps(request_values(request, [tensors.to_json(n, array) for n, array in request.inputs.items()]))


def request_values(request: InferRequest, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The request as plain values around its `inputs`."""
    values: dict[str, Any] = {"inputs": inputs}
    if request.id is not None:
        values["id"] = request.id
    if request.outputs:
        values["outputs"] = [_output(name, request.binary_outputs) for name in request.outputs]
    if request.parameters:
        values["parameters"] = dict(request.parameters)
    return values


def read_response(body: Body) -> InferResponse:
    """The response in a JSON body. Raises: InputError where it is none."""
    return response_of(loads(body, "the answer"), tensors.from_json)


def response_of(values: Any, read: Reader) -> InferResponse:
    """The response in these values, whose tensors `read` reads. Raises: InputError where it is none."""
    values = _object(values, "the answer")
    return InferResponse(
        model_name=str(values.get("model_name", "")),
        model_version=str(values.get("model_version", "")),
        outputs=_tensors(values, "outputs", read),
        id=values.get("id"),
    )


def write_response(response: InferResponse) -> bytes:
    """The response as a JSON body. Raises: InputError for values that JSON cannot carry."""
    return dumps(response_values(response, [tensors.to_json(*named) for named in response.outputs.items()]))


def response_values(response: InferResponse, outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The response as plain values around its `outputs`."""
    values: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id is not None:
        values["id"] = response.id
    return {**values, "outputs": outputs}


def select(outputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
    """The wanted outputs in the order asked for; all where none is named. Raises: InputError."""
    for name in wanted:
        if name not in outputs:
            raise InputError(f"output {name[:60]!r} is not known; this model gives: {', '.join(outputs)}")
    return {name: outputs[name] for name in wanted} if wanted else dict(outputs)


def dumps(values: Any) -> bytes:
    """Strict JSON without spaces, UTF-8. Raises: InputError for a text that UTF-8 cannot carry."""
    try:
        return _ENCODER.encode(values).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"a text holds half a surrogate pair ({error.object[error.start]!r}); give valid Unicode"
        ) from None


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False)


def _no_constant(name: str) -> None:
    raise ValueError(f"it has {name}, which is not JSON; send finite numbers")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def is_text(value: Any) -> bool:
    """A string that UTF-8 can carry: JSON may hold half a surrogate pair."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _object(values: Any, what: str = "the body") -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise InputError(f"{what}: expected an object, found {type(values).__name__}")
    return values


def _tensors(values: Mapping[str, Any], key: str, read: Reader) -> dict[str, Array]:
    entries = values.get(key)
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{key!r}: expected a list of one tensor or more")
    found: dict[str, Array] = {}
    for index, entry in enumerate(entries):
        name, array = read(entry, f"{key}[{index}]")
        if name in found:
            raise InputError(f"{key}[{index}]: {name[:60]!r} is there twice")
        found[name] = array
    return found


def _wanted(outputs: Any) -> tuple[tuple[str, ...], dict[str, bool]]:
    """Names of the wanted outputs, and whether they are to come as raw bytes, where they say."""
    if outputs is None:
        return (), {}
    if not isinstance(outputs, list) or not all(
        isinstance(output, Mapping) and isinstance(output.get("name"), str) for output in outputs
    ):
        raise InputError('"outputs": expected a list of objects with a name')
    binary: dict[str, bool] = {}
    for output in outputs:
        parameters = output.get("parameters")
        if isinstance(parameters, Mapping) and BINARY_DATA in parameters:
            _check_flag(parameters, BINARY_DATA, f"output {tensors.shown(output['name'])}")
            binary[output["name"]] = parameters[BINARY_DATA]
    return tuple(output["name"] for output in outputs), binary


def _output(name: str, binary: Mapping[str, bool]) -> dict[str, Any]:
    return {"name": name, "parameters": {BINARY_DATA: binary[name]}} if name in binary else {"name": name}


def _check_flag(parameters: Mapping[str, Any], name: str, what: str) -> None:
    if type(parameters.get(name, False)) is not bool:
        raise InputError(f"{what}: {name} is {tensors.shown(parameters[name])}; give true or false")
