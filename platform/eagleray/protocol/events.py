"""Server-sent events of one text, on any route: what all of them have in common is written once.

They are ASCII, since some clients cut lines at U+2028 too (httpx's iter_lines does).
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from json.encoder import encode_basestring_ascii
from typing import Any, Protocol

from eagleray.protocol.generation import GenerationChunk, Token

quoted = encode_basestring_ascii
"""A text as JSON."""


class TextEvents(Protocol):
    """Writes the events of one answer, in their order."""

    def piece(
        self, text: str, prompt_tokens: int, completion_tokens: int, tokens: tuple[Token, ...] = ()
    ) -> str:
        """The events of a piece that is not the last; the first one's may be preceded by others."""
        ...

    def last(self, chunk: GenerationChunk) -> str:
        """Those of the last piece, and all that follows it."""
        ...

    def error(self, status: int, message: str) -> str:
        """The error as an event, where the status of the answer is already sent; nothing follows it."""
        ...


def event(values: Mapping[str, Any]) -> str:
    """One event."""
    return f"data: {json.dumps(values, separators=(',', ':'))}\n\n"


async def written(events: TextEvents, chunks: AsyncGenerator[GenerationChunk]) -> AsyncGenerator[bytes]:
    """The body of a `text/event-stream`, as the chunks come.

    Nothing is yielded before the first chunk is there, so an error before it can still be the status. Closed
    early, or when an error passes, `chunks` is closed; after an error send `events.error`.
    """
    async with aclosing(chunks):
        async for chunk in chunks:
            if chunk.finish_reason is None:
                counts = chunk.prompt_tokens, chunk.completion_tokens
                yield events.piece(chunk.text, *counts, chunk.tokens).encode()
            else:
                yield events.last(chunk).encode()
