from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eagleray.serving.link.frames import (
    HEADER,
    HEADER_BYTES,
    FrameError,
    FrameReader,
    Kind,
    Seal,
    header,
    text_bytes,
    text_of,
)

KEY = b"k" * 32
MAX_BYTES = 1 << 20
FRAME = st.tuples(
    st.sampled_from([kind for kind in Kind if kind]),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.one_of(
        st.binary(max_size=40), st.integers(0, 200_000).map(lambda size: bytes(range(256)) * (size // 256))
    ),
)


def encoded(frames, seal: Seal | None = None) -> bytes:
    parts = []
    for kind, flags, stream, deadline_ms, body in frames:
        extra = 16 if seal else 0
        head = header(kind, stream, len(body) + extra, flags=flags, deadline_ms=deadline_ms)
        parts += [head, body, seal.tag(head, [body]) if seal else b""]
    return b"".join(parts)


def feed(reader: FrameReader, data: bytes, chunks: list[int]) -> None:
    at, turn = 0, 0
    while at < len(data):
        place = reader.get_buffer()
        assert len(place) > 0
        size = min(len(place), len(data) - at, chunks[turn % len(chunks)])
        place[:size] = data[at : at + size]
        reader.updated(size)
        at, turn = at + size, turn + 1


def read(data: bytes, chunks: list[int], seal: Seal | None = None, max_bytes: int = MAX_BYTES):
    found = []

    def on_frame(kind, flags, stream, deadline_ms, body) -> None:
        found.append((kind, flags, stream, deadline_ms, bytes(body)))

    feed(FrameReader(on_frame, max_bytes, seal), data, chunks)
    return found


@settings(max_examples=60, deadline=None)
@given(
    frames=st.lists(FRAME, max_size=6),
    chunks=st.lists(st.integers(1, 300_000), min_size=1, max_size=5),
    is_sealed=st.booleans(),
)
def test_what_was_sent_is_read_however_it_is_cut(frames, chunks, is_sealed) -> None:
    data = encoded(frames, Seal(KEY) if is_sealed else None)
    assert (
        read(data, [max(chunk, len(data) // 500 + 1) for chunk in chunks], Seal(KEY) if is_sealed else None)
        == frames
    )


def test_a_body_is_the_takers_own() -> None:
    bodies = []
    reader = FrameReader(lambda *frame: bodies.append(frame[4]), MAX_BYTES)
    first, second = (encoded([(Kind.INFER, 0, 1, 0, letter * 50)]) for letter in (b"a", b"b"))
    feed(reader, first, [1000])
    feed(reader, second, [1000])
    assert [bytes(body) for body in bodies] == [b"a" * 50, b"b" * 50]
    bodies[0][:1] = b"x"  # and may be written to: torch wants that


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=400), chunks=st.lists(st.integers(1, 100), min_size=1, max_size=3))
@example(data=b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", chunks=[100])
def test_garbage_is_frames_or_an_error(data, chunks) -> None:
    with contextlib.suppress(FrameError):
        found = read(data, chunks)
        assert sum(HEADER_BYTES + len(frame[4]) for frame in found) <= len(data)


@settings(max_examples=100, deadline=None)
@given(
    data=st.binary(min_size=16, max_size=300), chunks=st.lists(st.integers(1, 100), min_size=1, max_size=3)
)
def test_garbage_is_never_a_sealed_frame(data, chunks) -> None:
    with contextlib.suppress(FrameError):
        assert read(data, chunks, Seal(KEY)) == []


@pytest.mark.parametrize("size", [MAX_BYTES + 1, 2**31, 2**32 - 1])
def test_a_length_beyond_what_was_agreed_is_refused_at_its_header(size: int) -> None:
    with pytest.raises(FrameError, match=f"{size} bytes, and the most that was agreed is {MAX_BYTES}"):
        read(header(Kind.INFER, 1, size), [16])


def test_one_that_is_whole_and_too_large_is_refused_as_well() -> None:
    with pytest.raises(FrameError, match="the most that was agreed is 10"):
        read(encoded([(Kind.INFER, 0, 1, 0, b"x" * 11)]), [1000], max_bytes=10)


@pytest.mark.parametrize("kind", [0, 16, 255])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    for body in (b"", b"half a body"):
        with pytest.raises(FrameError, match=f"kind {kind}, which there is not"):
            read(HEADER.pack(len(body) + 1, 1, kind, 0, 0, 0) + body + b".", [1000])


class TestSeal:
    frames = (
        (Kind.INFER, 0, 1, 500, b"one"),
        (Kind.CANCEL, 0, 1, 0, b""),
        (Kind.INFER, 0, 2, 0, b"two" * 20_000),
    )

    def test_a_frame_sent_twice_is_refused(self) -> None:
        data = encoded(self.frames[:1], Seal(KEY))
        with pytest.raises(FrameError, match="seal is wrong"):
            read(data + data, [1000], Seal(KEY))

    def test_a_frame_left_out_is_noticed(self) -> None:
        data = encoded(self.frames, Seal(KEY))
        with pytest.raises(FrameError, match="seal is wrong"):
            read(data[HEADER_BYTES + 3 + 16 :], [1000], Seal(KEY))

    def test_another_key(self) -> None:
        with pytest.raises(FrameError, match="made with another key"):
            read(encoded(self.frames, Seal(b"o" * 32)), [1000], Seal(KEY))

    @settings(max_examples=60, deadline=None)
    @given(at=st.integers(0, 3 * HEADER_BYTES + 3 * 16 + 3 + 59_999), bit=st.integers(0, 7))
    def test_any_bit_that_flips(self, at: int, bit: int) -> None:
        data = bytearray(encoded(self.frames, Seal(KEY)))
        data[at] ^= 1 << bit
        try:
            found = read(bytes(data), [7000], Seal(KEY))
        except FrameError:
            return
        # A changed length: the reader waits for the rest of it, and gave nothing wrong out before.
        assert found == list(self.frames)[: len(found)]
        assert len(found) < 3

    def test_no_room_for_one(self) -> None:
        with pytest.raises(FrameError, match="no room for its seal"):
            read(header(Kind.PING, 0, 15) + bytes(15), [1000], Seal(KEY))


def test_text_is_bounded_and_never_fails() -> None:
    assert text_of(text_bytes("größe")) == "größe"
    assert len(text_bytes("ö" * 10_000)) == 4096
    assert text_of(b"\xff\xfe") == "\ufffd\ufffd"
    assert text_bytes("\ud800") == b"?"


def test_the_header_is_16_bytes_in_the_order_that_is_written_down() -> None:
    assert header(Kind.INFER, 7, 3, flags=1, deadline_ms=250) == struct.pack("<IIBBHI", 3, 7, 4, 1, 0, 250)
