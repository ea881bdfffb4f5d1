"""Text as bytes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class ByteTokenizer:
    """UTF-8 bytes as tokens 0..255, then padding and the mask: no vocabulary to learn, to ship or to miss."""

    vocabulary_size = 258
    padding_token = 256
    mask_token = 257

    def encode(self, text: str) -> NDArray[np.int64]:
        """Tokens [N] of the text, int64."""
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8).astype(np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of the tokens; padding and masks are left out, broken characters become U+FFFD."""
        return self.to_bytes(tokens).decode("utf-8", "replace")

    def to_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes that the tokens stand for (none for padding and mask); may end within a character."""
        return bytes(int(token) for token in tokens if token < self.padding_token)
