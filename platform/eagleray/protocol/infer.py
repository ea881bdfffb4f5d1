"""Inference requests and responses of the Open Inference protocol v2, to and from JSON.

The values hold arrays, whatever carried them: a binary form needs only a second pair of read and write.

Source: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eagleray.errors import InputError
from eagleray.protocol import tensors
from eagleray.protocol.tensors import Array


@dataclass(frozen=True)
class InferRequest:
    """What a client asks of one model version."""

    inputs: Mapping[str, Array]
    outputs: tuple[str, ...] = ()
    """Names of the wanted ones; none named, all are wanted."""
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InferResponse:
    """The model version's answer."""

    model_name: str
    model_version: str
    outputs: Mapping[str, Array]
    id: str | None = None


def loads(body: bytes | bytearray | memoryview, what: str = "the body") -> Any:
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


def read_request(body: bytes | bytearray | memoryview) -> InferRequest:
    """The request in a JSON body. Raises: InputError."""
    values = _object(loads(body))
    inputs = _tensors(values, "inputs")
    request_id = values.get("id")
    if request_id is not None and not is_text(request_id):
        raise InputError("id: expected a string of valid Unicode")
    parameters = values.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise InputError("parameters: expected an object")
    return InferRequest(inputs, _wanted(values.get("outputs")), request_id, parameters)


def write_request(request: InferRequest) -> bytes:
    """The request as a JSON body. Raises: InputError for values that JSON cannot carry."""
    values: dict[str, Any] = {"inputs": [tensors.to_json(n, array) for n, array in request.inputs.items()]}
    if request.id is not None:
        values["id"] = request.id
    if request.outputs:
        values["outputs"] = [{"name": name} for name in request.outputs]
    if request.parameters:
        values["parameters"] = dict(request.parameters)
    return dumps(values)


def read_response(body: bytes | bytearray | memoryview) -> InferResponse:
    """The response in a JSON body. Raises: InputError where it is none."""
    values = _object(loads(body, "the answer"), "the answer")
    return InferResponse(
        model_name=str(values.get("model_name", "")),
        model_version=str(values.get("model_version", "")),
        outputs=_tensors(values, "outputs"),
        id=values.get("id"),
    )


def write_response(response: InferResponse) -> bytes:
    """The response as a JSON body. Raises: InputError for values that JSON cannot carry."""
    values: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id is not None:
        values["id"] = response.id
    values["outputs"] = [tensors.to_json(name, array) for name, array in response.outputs.items()]
    return dumps(values)


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


def _tensors(values: Mapping[str, Any], key: str) -> dict[str, Array]:
    entries = values.get(key)
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{key!r}: expected a list of one tensor or more")
    found: dict[str, Array] = {}
    for index, entry in enumerate(entries):
        name, array = tensors.from_json(entry, f"{key}[{index}]")
        if name in found:
            raise InputError(f"{key}[{index}]: {name[:60]!r} is there twice")
        found[name] = array
    return found


def _wanted(outputs: Any) -> tuple[str, ...]:
    if outputs is None:
        return ()
    if not isinstance(outputs, list) or not all(
        isinstance(output, Mapping) and isinstance(output.get("name"), str) for output in outputs
    ):
        raise InputError('"outputs": expected a list of objects with a name')
    return tuple(output["name"] for output in outputs)
