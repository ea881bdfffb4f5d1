"""Requests for text, their pieces and their ends, as the bodies of a link's frames.

GENERATE: JSON of a `GenerationRequest`'s fields, and "key": whose it is, for turns between keys. A piece:
tokens of the prompt (u32), then UTF-8; where tokens are asked for, bit 31 of that number is set, and it is
followed by the text's bytes (u32), the text, and the tokens as JSON. The end of a text: its last piece
likewise, then behind it the tokens that were made (u32) and one byte for the reason.
"""

from __future__ import annotations

import struct

import msgspec
import orjson

from eagleray.errors import InputError
from eagleray.protocol.generation import FinishReason, GenerationChunk, GenerationRequest, Token
from eagleray.serving.link.frames import Buffer, FrameError

_PROMPT = struct.Struct("<I")
_SIZED = struct.Struct("<II")
_HAS_TOKENS = 1 << 31
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
    with_tokens: bool = False


_DECODER = msgspec.json.Decoder(_Asked)
_TOKENS = msgspec.json.Decoder(tuple[Token, ...])


def request_bytes(request: GenerationRequest, key: str = "") -> bytes:
    """The body of a GENERATE."""
    values = {**vars(request), "key": key}
    if not request.with_tokens:
        del values["with_tokens"]  # which a replica of an older version does not know
    return orjson.dumps(values)


def read_request(body: Buffer) -> tuple[GenerationRequest, str]:
    """The request, and whose it is. Raises: InputError: it is none, or has a value out of its range."""
    try:
        asked = _DECODER.decode(body)
    except msgspec.MsgspecError as error:
        raise InputError(f"the request for text cannot be read: {error}") from None
    request = GenerationRequest(
        asked.prompt,
        asked.max_tokens,
        asked.temperature,
        asked.top_p,
        asked.seed,
        asked.stop,
        asked.with_tokens,
    )
    return request, asked.key


def piece_bytes(chunk: GenerationChunk) -> bytes:
    """What a piece carries beside the number of tokens, which its frame has."""
    text = chunk.text.encode()
    if not chunk.tokens:
        return _PROMPT.pack(chunk.prompt_tokens) + text
    sized = _SIZED.pack(chunk.prompt_tokens | _HAS_TOKENS, len(text))
    return sized + text + msgspec.json.encode(chunk.tokens)


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
    told: tuple[Token, ...] = ()
    text = piece[_PROMPT.size :]
    if prompt_tokens & _HAS_TOKENS:
        text, told = _with_tokens(piece)
    try:
        said = str(text, "utf-8")
    except UnicodeDecodeError:
        raise FrameError("a piece of a text is not UTF-8") from None
    return GenerationChunk(said, reason, prompt_tokens & ~_HAS_TOKENS, tokens, told)


def _with_tokens(piece: Buffer) -> tuple[Buffer, tuple[Token, ...]]:
    if len(piece) < _SIZED.size:
        raise FrameError(f"a piece of a text with its tokens in {len(piece)} bytes")
    end = _SIZED.size + _SIZED.unpack_from(piece)[1]
    try:
        return piece[_SIZED.size : end], _TOKENS.decode(piece[end:])
    except msgspec.MsgspecError as error:
        raise FrameError(f"the tokens of a piece cannot be read: {error}") from None
