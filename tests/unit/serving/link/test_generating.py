"""Requests for text and their pieces as the bodies of frames."""

from __future__ import annotations

import pytest

from eagleray.errors import InputError
from eagleray.protocol.generation import GenerationChunk, GenerationRequest, Token
from eagleray.serving.link import generating
from eagleray.serving.link.frames import FrameError

TOKENS = (Token(7, "\ufffd", -0.25), Token(8, "é", -1e-9))
CHUNKS = [
    GenerationChunk("é€", None, 3, 5),
    GenerationChunk("", None, 3, 5),
    GenerationChunk("é€", None, 3, 5, TOKENS),
    GenerationChunk("", None, 2**31 - 1, 2**32 - 1, TOKENS),
]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_piece_is_read_as_it_was_written(chunk: GenerationChunk) -> None:
    assert generating.read_piece(generating.piece_bytes(chunk), chunk.completion_tokens) == chunk


@pytest.mark.parametrize("tokens", [(), TOKENS])
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_end_is_read_as_it_was_written(tokens, reason) -> None:
    chunk = GenerationChunk("x", reason, 3, 9, tokens)
    assert generating.read_end(memoryview(generating.end_bytes(chunk))) == chunk


@pytest.mark.parametrize("chunk", CHUNKS[2:])
def test_a_piece_that_is_cut_is_refused(chunk: GenerationChunk) -> None:
    piece = generating.piece_bytes(chunk)
    for end in range(len(piece)):
        with pytest.raises(FrameError):
            generating.read_piece(piece[:end], 1)


def test_tokens_that_are_none_are_refused() -> None:
    piece = generating.piece_bytes(CHUNKS[2])
    for wrong in (b"[[7]]", b"{}", b'[["a","b",1]]', b"[" * 100_000):
        with pytest.raises(FrameError, match="the tokens of a piece cannot be read"):
            generating.read_piece(piece[: 8 + len("é€".encode())] + wrong, 1)


@pytest.mark.parametrize("with_tokens", [False, True])
def test_a_request_is_read_as_it_was_written(with_tokens: bool) -> None:
    request = GenerationRequest("é", 5, 0.5, 0.25, -3, ("a", "€"), with_tokens)
    assert generating.read_request(generating.request_bytes(request, "k")) == (request, "k")
    with pytest.raises(InputError, match="cannot be read"):
        generating.read_request(b'{"prompt": "a"}')
