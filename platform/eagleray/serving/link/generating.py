"""Requests for text, their pieces and their ends, as the bodies of a link's frames.

GENERATE: JSON of a `GenerationRequest`'s fields, and "key": whose it is, for turns between keys. A piece:
tokens of the prompt (u32), then UTF-8. The end of a text: its last piece likewise, then behind it the tokens
that were made (u32) and one byte for the reason.
"""

from __future__ import annotations

import struct

import msgspec
import orjson

from eagleray.errors import InputError
from eagleray.protocol.generation import FinishReason, GenerationChunk, GenerationRequest
from eagleray.serving.link.frames import Buffer, FrameError

_PROMPT = struct.Struct("<I")
_END = struct.Struct("<IB")
_REASONS: tuple[FinishReason, ...] = ("stop", "length")
_CODES = {reason: code for code, reason in enumerate(_REASONS)}


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    key: str = ""


_DECODER = msgspec.json.Decoder(_Asked)


def request_bytes(request: GenerationRequest, key: str = "") -> bytes:
    """The body of a GENERATE."""
    return orjson.dumps({**vars(request), "key": key})


def read_request(body: Buffer) -> tuple[GenerationRequest, str]:
    """The request, and whose it is. Raises: InputError: it is none, or has a value out of its range."""
    try:
        asked = _DECODER.decode(body)
    except msgspec.MsgspecError as error:
        raise InputError(f"the request for text cannot be read: {error}") from None
    request = GenerationRequest(
        asked.prompt, asked.max_tokens, asked.temperature, asked.top_p, asked.seed, asked.stop
    )
    return request, asked.key


def piece_bytes(chunk: GenerationChunk) -> bytes:
    """What a piece carries beside the number of tokens, which its frame has."""
    return _PROMPT.pack(chunk.prompt_tokens) + chunk.text.encode()


def read_piece(piece: Buffer, tokens: int) -> GenerationChunk:
    """The chunk. Raises: FrameError."""
    return _chunk(piece, None, tokens)


def end_bytes(chunk: GenerationChunk) -> bytes:
    """The body of a text's RESULT: its last chunk, which has a reason."""
    assert chunk.finish_reason is not None
    return piece_bytes(chunk) + _END.pack(chunk.completion_tokens, _CODES[chunk.finish_reason])


def read_end(body: Buffer) -> GenerationChunk:
    """The last chunk. Raises: FrameError."""
    at = len(body) - _END.size
    if at < 0:
        raise FrameError(f"the end of a text in {len(body)} bytes")
    tokens, code = _END.unpack_from(body, at)
    if code >= len(_REASONS):
        raise FrameError(f"a text ended for reason {code}, which is none")
    return _chunk(body[:at], _REASONS[code], tokens)


def _chunk(piece: Buffer, reason: FinishReason | None, tokens: int) -> GenerationChunk:
    if len(piece) < _PROMPT.size:
        raise FrameError(f"a piece of a text in {len(piece)} bytes")
    (prompt_tokens,) = _PROMPT.unpack_from(piece)
    try:
        text = str(piece[_PROMPT.size :], "utf-8")
    except UnicodeDecodeError:
        raise FrameError("a piece of a text is not UTF-8") from None
    return GenerationChunk(text, reason, prompt_tokens, tokens)
