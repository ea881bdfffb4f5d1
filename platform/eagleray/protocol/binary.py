"""The binary tensor extension of Open Inference v2: the JSON of infer.py, and raw values behind it.

A tensor with the parameter `binary_data_size` has no `data`: its bytes follow the JSON, in the JSON's order,
little-endian, row by row, without gaps; each BYTES value is its length (4 bytes) and its UTF-8 text. The
header `Inference-Header-Content-Length` says where the JSON ends. Other tensors of the body may be JSON.

What is read are views of the body: they are not writable where it is not, and nothing is copied.

Source: github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from eagleray.errors import InputError
from eagleray.protocol import infer, tensors
from eagleray.protocol.infer import Body, InferRequest, InferResponse
from eagleray.protocol.tensors import Array, Head

EXTENSION = "binary_tensor_data"
"""As GET /v2 announces it."""
HEADER = "inference-header-content-length"
MEDIA_TYPE = "application/octet-stream"
SIZE = "binary_data_size"

ToJson = Callable[[str, Array], dict[str, Any]]
"""As `tensors.to_json`."""
Dumps = Callable[[Any], bytes]
"""As `infer.dumps`."""

_LENGTH = struct.Struct("<I")
_ALIGNMENT = 8
"""Our own JSON is filled with blanks up to a multiple: numpy is slower on values that begin in between."""


class Written(NamedTuple):
    """A body in parts, of which no tensor's is a copy."""

    parts: list[Any]
    """The JSON, then buffers of the values: bytes or arrays."""
    json_bytes: int | None
    """For the header; None where nothing is binary, and the body is plain JSON."""

    @property
    def body(self) -> bytes:
        """All in one."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)


class TakesLong(Exception):
    """Reading the body takes more than the moment that an event loop has."""


def read_request(body: Body, header: str | None, *, quick_bytes: int | None = None) -> InferRequest:
    """The request in a body; `header` is Inference-Header-Content-Length, None where there is none.

    Raises:
        InputError: it is no request, or a size is not what shape, datatype and body say.
        TakesLong: it has more JSON or more bytes of texts than `quick_bytes`; numbers take no time.
    """
    text, rest = split(body, header, quick_bytes=quick_bytes)
    if quick_bytes is not None and len(text) > quick_bytes:
        raise TakesLong
    values = infer.loads_alone(text) if header is None else infer.loads(text, "the body's JSON")
    found = infer.request_of(values, rest.tensor)
    rest.check_end()
    return found


def read_response(body: Body, header: str | None) -> InferResponse:
    """The response in a body; as `read_request`."""
    text, rest = split(body, header, "the answer")
    found = infer.response_of(infer.loads(text, "the answer"), rest.tensor)
    rest.check_end()
    return found


def write_request(request: InferRequest, is_binary: Callable[[str], bool] = lambda _: True) -> Written:
    """The request, those inputs as raw bytes that `is_binary` by their name. Raises: InputError."""
    entries, values = _written(request.inputs, is_binary, tensors.to_json)
    return _joined(infer.request_values(request, entries), values, infer.dumps)


def write_response(
    response: InferResponse,
    is_binary: Callable[[str], bool],
    *,
    to_json: ToJson = tensors.to_json,
    dumps: Dumps = infer.dumps,
) -> Written:
    """The response, those outputs as raw bytes that `is_binary` by their name. Raises: InputError."""
    entries, values = _written(response.outputs, is_binary, to_json)
    return _joined(infer.response_values(response, entries), values, dumps)


def split(
    body: Body, header: str | None, what: str = "the body", quick_bytes: int | None = None
) -> tuple[Body, Rest]:
    """The JSON, and what is behind it. Raises: InputError where the header is no length within the body."""
    if header is None:
        return body, Rest(memoryview(b""))
    text = header.strip()
    if not (text.isascii() and text.isdecimal()):
        raise InputError(f"Inference-Header-Content-Length is {header[:60]!r}; give the bytes of the JSON")
    if len(text) > 18 or (size := int(text)) > len(body):
        raise InputError(
            f"Inference-Header-Content-Length is {text[:60]}, and {what} has {len(body)} bytes; "
            "give those of its JSON"
        )
    view = memoryview(body)
    return view[:size], Rest(view[size:], quick_bytes)


class Rest:
    """The bytes behind a body's JSON, which its tensors take one by one."""

    def __init__(self, view: memoryview, quick_bytes: int | None = None) -> None:
        self._view, self._at = view, 0
        self._quick_bytes = math.inf if quick_bytes is None else quick_bytes

    def tensor(self, entry: Any, what: str) -> tuple[str, Array]:
        """As `tensors.from_json`; a tensor with a `binary_data_size` takes its values from here."""
        parameters = entry.get("parameters") if isinstance(entry, Mapping) else None
        if not isinstance(parameters, Mapping) or SIZE not in parameters:
            return tensors.from_json(entry, what)
        head = tensors.head(entry, what)
        if "data" in entry:
            raise InputError(f"{head.what}: it has data, and a {SIZE} too; give one of them")
        return head.name, self.array(head, parameters[SIZE])

    def array(self, head: Head, size: Any) -> Array:
        """The next `size` bytes as the values of `head`. Raises: InputError where they do not fit."""
        what = head.what
        if type(size) is not int or size < 0:
            raise InputError(f"{what}: {SIZE} is {tensors.shown(size)}; give a whole number >= 0")
        _check_size(head, size)
        left = len(self._view) - self._at
        if size > left:
            raise InputError(
                f"{what}: {SIZE} is {tensors.shown(size)}, and the body has {left} bytes left for it; "
                "Inference-Header-Content-Length says where its JSON ends"
            )
        values = self._view[self._at : self._at + size]
        self._at += size
        if head.datatype == "BYTES":
            self._quick_bytes -= size
            if self._quick_bytes < 0:
                raise TakesLong
            return _texts(values, head).reshape(head.shape)
        array = np.frombuffer(values, head.dtype.newbyteorder("<")).reshape(head.shape)
        if head.datatype == "BOOL":
            _check_bool(array, what)
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{what}: it has NaN or infinite values; give finite ones")
        return array

    def check_end(self) -> None:
        """Raises: InputError where a tensor took less than there is."""
        if left := len(self._view) - self._at:
            raise InputError(f"the body has {left} bytes behind its last tensor's; give each its {SIZE}")


def _check_size(head: Head, size: int) -> None:
    count = math.prod(head.shape)
    if head.datatype == "BYTES":
        if size < _LENGTH.size * count:
            raise InputError(
                f"{head.what}: shape {list(head.shape)} holds {count} values of 4 bytes or more, "
                f"and {SIZE} is {tensors.shown(size)}"
            )
    elif size != (wanted := count * head.dtype.itemsize):
        raise InputError(
            f"{head.what}: shape {list(head.shape)} of {head.datatype} takes {wanted} bytes, "
            f"and {SIZE} is {tensors.shown(size)}"
        )


def _check_bool(array: Array, what: str) -> None:
    found = array.reshape(-1).view(np.uint8)
    if found.size and found.max() > 1:
        index = int((found > 1).argmax())
        raise InputError(f"{what}: BOOL is bytes of 0 and 1, and value {index} is {int(found[index])}")


def _texts(values: memoryview, head: Head) -> Array:
    count, end, at = math.prod(head.shape), len(values), 0
    array = np.empty(count, object)
    for index in range(count):
        if end - at < _LENGTH.size:
            raise InputError(f"{head.what}: its bytes end before the length of value {index}")
        (size,) = _LENGTH.unpack_from(values, at)
        at += _LENGTH.size
        if size > end - at:
            raise InputError(f"{head.what}: value {index} is {size} bytes long, and {end - at} are left")
        try:
            array[index] = str(values[at : at + size], "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{head.what}: value {index} is not UTF-8 text (byte {error.start}: {error.reason})"
            ) from None
        at += size
    if at != end:
        raise InputError(f"{head.what}: {end - at} bytes are behind its last value, {count - 1}")
    return array


def _written(
    arrays: Mapping[str, Array], is_binary: Callable[[str], bool], to_json: ToJson
) -> tuple[list[dict[str, Any]], list[Any]]:
    entries: list[dict[str, Any]] = []
    values: list[Any] = []
    for name, array in arrays.items():
        if not is_binary(name):
            entries.append(to_json(name, array))
            continue
        datatype, raw = tensors.datatype_of(array), _raw(name, array)
        values.append(raw)
        entries.append(
            {
                "name": name,
                "datatype": datatype,
                "shape": list(array.shape),
                "parameters": {SIZE: len(raw)},
            }
        )
    return entries, values


def _raw(name: str, array: Array) -> Any:
    """A buffer of the values, its length in bytes; a view of the array where it is as the wire wants it."""
    if array.dtype.kind in "OUS":
        return b"".join(_pieces(name, array))
    tensors.check_finite(name, array)
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
    return flat.view(np.uint8)


def _pieces(name: str, array: Array) -> Iterator[bytes]:
    for value in array.ravel():
        try:
            raw = tensors.text(value).encode()
        except UnicodeEncodeError:
            raise InputError(f"{name!r}: a text holds half a surrogate pair; give valid Unicode") from None
        yield _LENGTH.pack(len(raw))
        yield raw


def _joined(json_values: dict[str, Any], values: list[Any], dumps: Dumps) -> Written:
    text = dumps(json_values)
    if not values:
        return Written([text], None)
    text += b" " * (-len(text) % _ALIGNMENT)
    return Written([text, *values], len(text))
