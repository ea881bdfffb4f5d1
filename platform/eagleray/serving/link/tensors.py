"""Tensors on the link: a head that says what they are, then their values. Read as views, without a copy.

Head: number of tensors (u16), bytes of the head in eights (u16); for each tensor: bytes of its name (u8),
name, code of its datatype (u8), dimensions (u8), each dimension (u32), bytes of its values (u64); zeros up to
a multiple of 8. Values: in the same order, each start a multiple of 64 from the first one's. BYTES as in the
v2 binary data extension: for each element its bytes (u32) and they themselves.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from eagleray.errors import InputError
from eagleray.protocol.tensors import DTYPES, datatype_of
from eagleray.serving.link.frames import Buffer

Array = np.ndarray[Any, np.dtype[Any]]

ALIGN = 64
_CODES = {datatype: code for code, datatype in enumerate(DTYPES, start=1)}
_DTYPE_OF = {code: DTYPES[datatype] for datatype, code in _CODES.items()}
_NATIVE = {dtype: datatype for datatype, dtype in DTYPES.items() if datatype != "BYTES"}
_BYTES, _BOOL = _CODES["BYTES"], _CODES["BOOL"]
_CHECKED = frozenset({_BYTES, _BOOL})
"""Not every byte is a value of theirs."""
_COUNT = struct.Struct("<HH")
_LENGTH = struct.Struct("<I")
_NUM_BYTES = struct.Struct("<Q")
_MAX_DIMENSIONS = 32
_MAX_VALUES = 2**40
_CACHED_BYTES = 1024
"""Heads up to here are kept, at most 512 each way."""
_COPIED_BYTES = 4096


class TensorError(InputError):
    """The bytes are no tensors, or not those that their head says."""


class TensorSpec(NamedTuple):
    """One tensor's line of the head."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    num_bytes: int


_Placed = tuple[str, int, np.dtype[Any], tuple[int, ...], int, int]
"""Name, code, numpy's type, shape, where the values start, and their bytes."""


def starts(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where each tensor's values start, counted from the first, and how many bytes it is in all."""
    found, end = [], 0
    for size in sizes:
        start = -(-end // ALIGN) * ALIGN
        found.append(start)
        end = start + size
    return found, end


def head_of(specs: Sequence[TensorSpec]) -> bytes:
    """The head of tensors whose values somebody has as bytes. Raises: TensorError: it cannot say them."""
    specs = tuple(specs)
    return _head(specs) if len(specs) <= 16 else _head.__wrapped__(specs)


def write(arrays: Mapping[str, Array]) -> list[Buffer]:
    """Head and values, to be sent one behind the other. The arrays must not change before they are sent.

    Raises:
        TensorError: a type that has no datatype, a name of more than 255 bytes, or too many tensors.
    """
    specs: list[Any] = []  # of plain tuples: a TensorSpec takes longer to make than a head to be found
    parts: list[Buffer] = [b""]
    end = 0
    for name, array in arrays.items():
        datatype = _NATIVE.get(array.dtype)
        if datatype is not None and array.nbytes < _COPIED_BYTES:
            values: Buffer = array.tobytes()
        else:
            datatype, values = _raw(array)
        size = len(values)
        specs.append((name, datatype, array.shape, size))
        if padding := -end % ALIGN:
            parts.append(bytes(padding))
        parts.append(values)
        end += padding + size
    parts[0] = head_of(specs)
    return parts


def put(place: memoryview, values: Sequence[Buffer]) -> int | None:
    """Put what `write` gave behind the head into `place`, of a slot; its bytes, or None: no room."""
    length = sum(map(len, values))
    if length > len(place):
        return None
    at = 0
    for part in values:
        place[at : at + len(part)] = part
        at += len(part)
    return length


def read(body: Buffer) -> dict[str, Array]:
    """The tensors of a body: views of it. Raises: TensorError."""
    if len(body) < _COUNT.size:
        raise TensorError(f"tensors in {len(body)} bytes: there is not even a head")
    num_bytes = _COUNT.unpack_from(body)[1] * 8
    return _arrays(bytes(body[:num_bytes]), body, num_bytes)


def read_apart(head: bytes, values: Buffer) -> dict[str, Array]:
    """The tensors of a head and of values that lie elsewhere: views of `values`. Raises: TensorError."""
    return _arrays(head, values, 0)


def _arrays(head: bytes, values: Buffer, base: int) -> dict[str, Array]:
    """The tensors whose values start `base` bytes into `values`."""
    placed, wanted = _layout(head) if len(head) <= _CACHED_BYTES else _layout.__wrapped__(head)
    if len(values) - base != wanted:
        raise TensorError(
            f"the tensors' head says {wanted} bytes of values, and there are {len(values) - base}"
        )
    arrays: dict[str, Array] = {}
    for name, code, dtype, shape, start, num_bytes in placed:
        if code in _CHECKED:
            part = memoryview(values)[base + start : base + start + num_bytes]
            if code == _BYTES:
                arrays[name] = _texts(part, shape, name)
                continue
            _check_bools(part, name)
        arrays[name] = np.ndarray(shape, dtype, values, base + start)
    return arrays


@lru_cache(maxsize=512)
def _head(specs: tuple[TensorSpec, ...]) -> bytes:
    parts = []
    for name, datatype, shape, num_bytes in specs:
        encoded, code = name.encode(), _CODES.get(datatype)
        if code is None:
            raise TensorError(f"tensor {name!r}: datatype {datatype!r} is not known")
        if len(encoded) > 255:
            raise TensorError(f"tensor {name[:40]!r}…: its name has {len(encoded)} bytes; give at most 255")
        if len(shape) > _MAX_DIMENSIONS or any(not 0 <= size < 2**32 for size in shape):
            raise TensorError(f"tensor {name!r}: shape {list(shape)[:40]} is out of bounds")
        parts.append(
            struct.pack(
                f"<B{len(encoded)}sBB{len(shape)}IQ",
                len(encoded), encoded, code, len(shape), *shape, num_bytes,
            )
        )  # fmt: skip
    body = b"".join(parts)
    eights = -(-(_COUNT.size + len(body)) // 8)
    if len(specs) > 0xFFFF or eights > 0xFFFF:
        raise TensorError(f"{len(specs)} tensors: their head has no room for so many")
    return (_COUNT.pack(len(specs), eights) + body).ljust(eights * 8, b"\0")


@lru_cache(maxsize=512)
def _layout(head: bytes) -> tuple[tuple[_Placed, ...], int]:
    """What a head says, and the bytes of all values.

    Checked: names differ, shapes and bytes fit each other, and nothing is left over.
    """
    try:
        count, eights = _COUNT.unpack_from(head)
        if eights * 8 != len(head):
            raise TensorError(f"the tensors' head says {eights * 8} bytes, and there are {len(head)}")
        placed: list[_Placed] = []
        at, end = _COUNT.size, 0
        for _ in range(count):
            name, code, shape, num_bytes, at = _line(head, at)
            start = -(-end // ALIGN) * ALIGN
            placed.append((name, code, _DTYPE_OF[code], shape, start, num_bytes))
            end = start + num_bytes
    except (struct.error, IndexError):
        raise TensorError(f"the tensors' head ends early, after {len(head)} bytes") from None
    if len(head) - at >= 8 or any(head[at:]):
        raise TensorError(f"the tensors' head says {count} tensors, and more follows")
    if len({name for name, *_ in placed}) != count:
        raise TensorError("two tensors have one name")
    return tuple(placed), end


def _line(head: bytes, at: int) -> tuple[str, int, tuple[int, ...], int, int]:
    size = head[at]
    at += 1
    encoded = head[at : at + size]
    at += size
    code, num_dimensions = head[at], head[at + 1]
    try:
        name = encoded.decode()
    except UnicodeDecodeError:
        raise TensorError(f"a tensor's name is not UTF-8: {encoded[:40]!r}") from None
    if code not in _DTYPE_OF:
        raise TensorError(f"tensor {name!r}: no datatype has code {code}")
    if num_dimensions > _MAX_DIMENSIONS:
        raise TensorError(f"tensor {name!r}: {num_dimensions} dimensions; at most {_MAX_DIMENSIONS}")
    shape = struct.unpack_from(f"<{num_dimensions}I", head, at + 2)
    at += 2 + 4 * num_dimensions
    (num_bytes,) = _NUM_BYTES.unpack_from(head, at)
    # Zeros aside: numpy multiplies the others too, and raises where they overflow.
    if math.prod(max(1, size) for size in shape) > _MAX_VALUES:
        raise TensorError(f"tensor {name!r}: shape {list(shape)} is more than any body holds")
    wanted = math.prod(shape) * (4 if code == _BYTES else _DTYPE_OF[code].itemsize)
    if num_bytes < wanted or (num_bytes > wanted and code != _BYTES):
        raise TensorError(f"tensor {name!r}: shape {list(shape)} takes {wanted} bytes, not {num_bytes}")
    return name, code, shape, num_bytes, at + _NUM_BYTES.size


def _raw(array: Array) -> tuple[str, Buffer]:
    """Datatype, and the values as bytes: of large arrays a view."""
    datatype = _NATIVE.get(array.dtype)
    if datatype is None:
        datatype = datatype_of(array)
        if datatype == "BYTES":
            return datatype, _text_bytes(array)
        array = array.astype(array.dtype.newbyteorder("="))
    if array.nbytes < _COPIED_BYTES:
        return datatype, array.tobytes()
    return datatype, np.ascontiguousarray(array).data.cast("B")


def _text_bytes(array: Array) -> bytes:
    parts = []
    for value in array.ravel():
        if not isinstance(value, str | bytes):
            raise TensorError(f"BYTES takes str or bytes, and an element is {type(value).__name__}")
        try:
            encoded = value if isinstance(value, bytes) else value.encode()
        except UnicodeEncodeError:
            raise TensorError("BYTES takes UTF-8 text, and an element has half a surrogate pair") from None
        parts += (_LENGTH.pack(len(encoded)), encoded)
    return b"".join(parts)


def _texts(values: memoryview, shape: tuple[int, ...], name: str) -> Array:
    raw = bytes(values)  # a copy first: whoever shares the ring might change it between a check and its use
    count, at = math.prod(shape), 0
    texts: list[str] = []
    for index in range(count):
        if at + 4 > len(raw):
            raise TensorError(f"tensor {name!r}: element {index} of {count} is missing")
        (size,) = _LENGTH.unpack_from(raw, at)
        at += 4 + size
        if at > len(raw):
            raise TensorError(f"tensor {name!r}: element {index} has {size} bytes, which are not there")
        try:
            texts.append(raw[at - size : at].decode())
        except UnicodeDecodeError as error:
            raise TensorError(
                f"tensor {name!r}: element {index} is not UTF-8 text (byte {error.start})"
            ) from None
    if at != len(raw):
        raise TensorError(f"tensor {name!r}: {len(raw) - at} bytes are left after its {count} elements")
    array = np.empty(count, object)
    array[:] = texts
    return array.reshape(shape)


def _check_bools(values: memoryview, name: str) -> None:
    if len(values) and int(np.frombuffer(values, np.uint8).max()) > 1:
        raise TensorError(f"tensor {name!r}: BOOL takes bytes 0 and 1")
