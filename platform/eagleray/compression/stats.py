"""What the engine has sent and how long it took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """Sums of one rank since its hook was attached."""

    sent_bytes: int = 0
    """Handed to sends, headers included (of a sum by the backend: 2 (n-1)/n of its size)."""
    payload_bytes: int = 0
    """The same without headers."""
    uncompressed_bytes: int = 0
    """What a plain ring all-reduce of the gradients in their own dtype would have sent."""
    num_buckets: int = 0
    """Buckets exchanged."""
    encode_s: float = 0.0
    exchange_s: float = 0.0
    decode_s: float = 0.0
    """Times are of the engine's thread: up to the first wait, in waits, and in between and after. On CUDA
    they are launch times only."""
    relative_error: float = 0.0
    """|e| / |g + e| of the step that was last sampled: the residual's norm to that of what was to be sent."""

    @property
    def ratio(self) -> float:
        """Compression ratio: uncompressed bytes / sent bytes; 1 where nothing was sent."""
        return self.uncompressed_bytes / self.sent_bytes if self.sent_bytes else 1.0
