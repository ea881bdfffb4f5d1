"""Content codings of bodies: gzip and deflate, bounded when unpacked, and packed only where that pays.

A body of 64 kB can unpack to 64 MB. What is unpacked is counted while it comes, and what is long runs in a
thread, so that such a body costs the limit's memory, a few hundredths of a second, and nobody else's time.

Source: RFC 9110, sections 8.4 and 12.5.3.
"""

from __future__ import annotations

import asyncio
import zlib
from functools import lru_cache

from eagleray.errors import InputError

CODINGS = ("gzip", "deflate")
"""The first is chosen where a client likes both."""
_ALIASES = {"x-gzip": "gzip"}

_QUICK_PACKED_BYTES = 2**10
"""Up to here a body is unpacked in the event loop: to 1 MiB at most, in 3 ms."""
QUICK_BYTES = 2**15
"""Up to here one is packed in the loop, in 1 ms."""
_STEP_BYTES = 2**16
_SMALLEST_BYTES = 2**10
"""Less goes into one packet as it is."""
_LARGEST_SHARE = 0.9
"""Of a body's size, packed; random numbers as raw bytes come out just above."""
_LEVEL = 1
"""Levels from 2 on win a few per cent for twice the time."""


class TooLarge(Exception):
    """A body unpacks to more than the limit."""


def coding_of(header: str) -> str | None:
    """The coding that Content-Encoding names, None for a plain body. Raises: KeyError for another one."""
    name = header.strip().lower()
    name = _ALIASES.get(name, name)
    if name in ("", "identity"):
        return None
    if name not in CODINGS:
        raise KeyError(name)
    return name


async def unpacked(body: bytes, coding: str, limit_bytes: int) -> bytes:
    """As `unpack`, in a thread where it may take long."""
    if len(body) <= _QUICK_PACKED_BYTES:
        return unpack(body, coding, limit_bytes)
    return await asyncio.to_thread(unpack, body, coding, limit_bytes)


def unpack(body: bytes, coding: str, limit_bytes: int) -> bytes:
    """The plain body.

    Raises:
        InputError: the data are damaged, end too early or go on behind their end.
        TooLarge: there is more than `limit_bytes`; no more than that was unpacked.
    """
    machine = zlib.decompressobj(_window(body, coding))
    parts: list[bytes] = []
    left, view = limit_bytes, memoryview(body)
    for start in range(0, len(view), _STEP_BYTES):
        try:
            # What may come out at most is one byte more than there may be: 0 would be no limit.
            part = machine.decompress(view[start : start + _STEP_BYTES], left + 1)
        except zlib.error as error:
            raise InputError(f"the body is not {coding}: {str(error).rpartition(': ')[2]}") from None
        left -= len(part)
        if left < 0:
            raise TooLarge
        parts.append(part)
        if machine.eof:
            if machine.unused_data or start + _STEP_BYTES < len(view):
                raise InputError(f"the body goes on behind the end of its {coding} data")
            return b"".join(parts)
    raise InputError(f"the body ends in the middle of its {coding} data")


def _window(body: bytes, coding: str) -> int:
    """What zlib is told of the format: "deflate" is zlib's by the standard, and by some clients bare."""
    if coding == "gzip":
        return 16 + zlib.MAX_WBITS
    has_header = len(body) >= 2 and body[0] & 15 == 8 and (256 * body[0] + body[1]) % 31 == 0
    return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS


async def packed(body: bytes, accept: str) -> tuple[bytes, str] | None:
    """The body in the coding that Accept-Encoding likes best; None where there is none or it does not pay."""
    coding = wanted(body, accept)
    if coding is None:
        return None
    if len(body) <= QUICK_BYTES:
        found = pack(body, coding)
    else:
        found = await asyncio.to_thread(pack, body, coding)
    return None if found is None else (found, coding)


def wanted(body: bytes, accept: str) -> str | None:
    """The coding that Accept-Encoding likes best, where it likes one and the body is worth it."""
    return liked(accept) if accept and len(body) >= _SMALLEST_BYTES else None


def pack(body: bytes, coding: str) -> bytes | None:
    """The packed body; None where it is hardly smaller, which is judged by its beginning first."""
    if len(body) > 2 * QUICK_BYTES and _packed(body[:QUICK_BYTES], coding) is None:
        return None
    return _packed(body, coding)


def _packed(body: bytes, coding: str) -> bytes | None:
    machine = zlib.compressobj(_LEVEL, wbits=zlib.MAX_WBITS + (16 if coding == "gzip" else 0))
    found = machine.compress(body) + machine.flush()
    return found if len(found) <= _LARGEST_SHARE * len(body) else None


@lru_cache(maxsize=64)
def liked(accept: str) -> str | None:
    """The best coding of an Accept-Encoding header; None where the body is to come as it is."""
    weights: dict[str, float] = {}
    for item in accept.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        weights[_ALIASES.get(name, name)] = _weight(parameters)
    others = weights.get("*", 0.0)
    best = max(CODINGS, key=lambda name: weights.get(name, others))
    weight = weights.get(best, others)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0
