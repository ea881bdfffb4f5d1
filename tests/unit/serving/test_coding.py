"""gzip and deflate: unpacked as far as the limit, packed where the client likes it and it pays."""

from __future__ import annotations

import asyncio
import gzip
import random
import re
import threading
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.errors import InputError
from eagleray.serving.ingress import coding
from eagleray.serving.ingress.coding import TooLarge, liked, packed, unpack

TEXT = b'{"inputs": []}' * 300
RANDOM = random.Random(7).randbytes(200_000)


def bare(body: bytes) -> bytes:
    """Deflate without zlib's header, as some clients send it."""
    machine = zlib.compressobj(wbits=-15)
    return machine.compress(body) + machine.flush()


WAYS = {"gzip": gzip.compress, "deflate": zlib.compress, "bare": bare}


@pytest.mark.parametrize("way", WAYS)
@given(st.binary(max_size=200), st.integers(1, 2000))
def test_a_body_comes_back(way: str, piece: bytes, times: int) -> None:
    body, name = piece * times, "gzip" if way == "gzip" else "deflate"
    assert unpack(WAYS[way](body), name, len(body)) == body
    if body:
        with pytest.raises(TooLarge):
            unpack(WAYS[way](body), name, len(body) - 1)


@pytest.mark.parametrize("body", [TEXT, RANDOM, b""], ids=["text", "random", "nothing"])
@pytest.mark.parametrize("name", coding.CODINGS)
def test_data_that_are_damaged(name: str, body: bytes) -> None:
    whole = WAYS[name](body)
    for cut in {0, 1, 2, len(whole) // 2, len(whole) - 1}:
        with pytest.raises(InputError, match=f"the body ends in the middle of its {name} data"):
            unpack(whole[:cut], name, 10**6)
    for more in (b"\0", whole, b"x" * 200_000):
        with pytest.raises(InputError, match=f"the body goes on behind the end of its {name} data"):
            unpack(whole + more, name, 10**6)
    wrong = whole[:-1] + bytes([whole[-1] ^ 1])
    with pytest.raises(InputError, match=f"the body is not {name}: incorrect"):
        unpack(wrong, name, 10**6)
    with pytest.raises(InputError, match=re.escape(f"the body is not {name}: ")):
        unpack(b"\xff" * 40, name, 10**6)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", None),
        ("identity", None),
        ("br, zstd", None),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.1, deflate;q=0.2", "deflate"),
        ("gzip; q=0", None),
        ("gzip;q=0, *", "deflate"),
        ("*", "gzip"),
        ("*;q=0", None),
        ("identity, gzip;q=0.5", None),
        ("identity;q=0.5, gzip", "gzip"),
        ("gzip;q=x", None),
        ("gzip;q=nan", None),
        (";;,,=", None),
    ],
)
def test_what_a_client_likes(accept: str, expected: str | None) -> None:
    assert liked(accept) == expected


@pytest.mark.parametrize(
    ("body", "accept", "expected"),
    [
        (TEXT, "gzip, deflate, br", "gzip"),
        (TEXT, "deflate", "deflate"),
        (TEXT * 100, "gzip", "gzip"),
        (TEXT, "", None),
        (TEXT[:1000], "gzip", None),
        (RANDOM, "gzip", None),
        (RANDOM[:5000], "deflate", None),
        (RANDOM + TEXT * 1000, "gzip", None),
    ],
    ids=["gzip", "deflate", "long", "not asked", "short", "random", "random short", "random at first"],
)
def test_what_is_packed(body: bytes, accept: str, expected: str | None) -> None:
    found = asyncio.run(packed(body, accept))
    assert (found and found[1]) == expected
    if found:
        assert unpack(*found, len(body)) == body
        assert len(found[0]) < len(body) / 5


def test_long_bodies_leave_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def noted(*_: object) -> bytes:
        threads.append(threading.current_thread())
        return b""

    monkeypatch.setattr(coding, "pack", noted)
    monkeypatch.setattr(coding, "unpack", noted)
    for size in (1100, 40_000):
        asyncio.run(packed(b" " * size, "gzip"))
    for size in (1000, 1100):
        asyncio.run(coding.unpacked(b" " * size, "gzip", 10**6))
    assert [thread is threading.main_thread() for thread in threads] == [True, False, True, False]
