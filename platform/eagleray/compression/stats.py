"""What the engine has sent and how long it took."""

from __future__ import annotations

from dataclasses import dataclass, replace


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
    relative_error: float | None = None
    """|e| / |g + e| of the step that was last sampled: the residual's norm to that of what was to be sent.
    None: no step has been sampled, or no residual is kept."""
    probe_bytes: int = 0
    """What `auto` sent to measure the link; not in `sent_bytes`, nor its time in the others."""
    state_bytes: int = 0
    """What was sent to collect the state for checkpoints; likewise."""

    def plus(self, more: Stats) -> Stats:
        """The sums of both; the relative error is the later one, if there is one."""
        error = self.relative_error if more.relative_error is None else more.relative_error
        return Stats(
            sent_bytes=self.sent_bytes + more.sent_bytes,
            payload_bytes=self.payload_bytes + more.payload_bytes,
            uncompressed_bytes=self.uncompressed_bytes + more.uncompressed_bytes,
            num_buckets=self.num_buckets + more.num_buckets,
            encode_s=self.encode_s + more.encode_s,
            exchange_s=self.exchange_s + more.exchange_s,
            decode_s=self.decode_s + more.decode_s,
            relative_error=error,
            probe_bytes=self.probe_bytes + more.probe_bytes,
            state_bytes=self.state_bytes + more.state_bytes,
        )

    @property
    def ratio(self) -> float:
        """Compression ratio: uncompressed bytes / sent bytes; 1 where nothing was sent."""
        return self.uncompressed_bytes / self.sent_bytes if self.sent_bytes else 1.0


@dataclass(frozen=True)
class NonFinite:
    """Steps with a gradient that was not finite on some rank; the same on all ranks."""

    in_a_row: int = 0
    """Up to the last step; 0 where that was finite."""
    total: int = 0
    parameter: str | None = None
    """Of the last such step."""
    incomplete: int = 0
    """Of the total: steps of which not everything was taken back (`guard.GUARDED_STEPS`). What this rank had
    taken out of its residual for them is lost: at most what it sends in one step."""

    def then(self, parameter: str | None, *, is_whole: bool) -> NonFinite:
        """The same one step later: `parameter` was not finite in it; None: all were."""
        if parameter is None:
            return replace(self, in_a_row=0) if self.in_a_row else self
        return NonFinite(self.in_a_row + 1, self.total + 1, parameter, self.incomplete + (not is_whole))
