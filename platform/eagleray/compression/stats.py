"""What the engine has sent and how long it took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """Sums of one rank since its hook was attached."""

    sent_bytes: int = 0
    """Handed to the exchange: 2 (n-1)/n of the payload's size for n ranks, rounded up to whole bytes."""
    uncompressed_bytes: int = 0
    """The same formula for the gradient in its own dtype: what a plain ring all-reduce would have sent."""
    num_buckets: int = 0
    """Buckets exchanged."""
    encode_s: float = 0.0
    exchange_s: float = 0.0
    decode_s: float = 0.0
    """Times are of the engine's thread; on CUDA they are launch times only."""


def ring_bytes(payload_bytes: int, world_size: int) -> int:
    """Bytes that each rank sends to sum a payload over all ranks: reduce-scatter, then all-gather."""
    return -(-2 * (world_size - 1) * payload_bytes // world_size)
