"""What the ranks of a group say to each other: a header and a body in one piece of memory.

Shapes: P bytes of a body.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

HEADER = 64
"""Bytes before each body."""
ALIGN = 64
"""Bodies of messages that share a buffer start at multiples of so many bytes."""
FIELDS = struct.Struct("<4sIIIQii32s")
"""Magic and version, step, bucket, stage, layout, bad parameter, P, compressor."""
MAGIC = b"EGR\1"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Step:
    """Where an exchange belongs."""

    number: int
    """Counts synchronised backward passes since the hook was attached."""
    bucket: int
    """Ordinal of the bucket in this step."""
    loss_scale: float = 1.0
    """The gradient is so many times the loss's; residuals are kept without it."""
    ready_s: float = field(default_factory=time.perf_counter, compare=False)
    """When the bucket was handed over, by this process's clock."""


class Message:
    """A buffer that can be sent or received again and again."""

    def __init__(self, data: Tensor, start: int = 0, window: Tensor | None = None):
        """Wrap a piece of memory.

        Args:
            data: uint8 [HEADER + P].
            start: its first byte in the buffer that it is part of.
            window: begins as `data` and goes on behind it, as far as a longer message may be written that a
                peer sends by mistake: gloo ends the process where one does not fit. None: no further.
        """
        self.data, self.window = data, data if window is None else window
        self.body = data[HEADER:]
        self.at = start + HEADER
        """First byte of the body in that buffer."""
        self._bytes = None if data.is_cuda else data.numpy().data[:HEADER]

    def stamp(self, header: bytes) -> None:
        """Write the header."""
        if self._bytes is not None:
            self._bytes[:] = header
        else:
            self.data[:HEADER].copy_(torch.frombuffer(bytearray(header), dtype=torch.uint8))

    def header(self) -> tuple[Any, ...]:
        """The header's fields; waits for the device."""
        held = self._bytes
        return FIELDS.unpack(held if held is not None else bytes(self.data[:HEADER].tolist()))


class Blocks:
    """Memory for messages, on the CPU: each has room behind it, of which nothing is used."""

    def __init__(self):
        self.room = 0
        """Bytes at least behind each message; pages that nobody writes cost address space only."""
        self._block = torch.empty(0, dtype=torch.uint8)
        self._end = 0

    def take(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes + room or more], the first `num_bytes` zeros; the rest is shared by all."""
        start = -(-self._end // ALIGN) * ALIGN
        if start + num_bytes + self.room > self._block.numel():
            size = max(num_bytes, self.room, _BLOCK)
            self._block, start = torch.empty(size + self.room, dtype=torch.uint8), 0
        self._end = start + num_bytes
        self._block[start : self._end].zero_()
        return self._block[start:]


def ring_bytes(num_bytes: int, world_size: int) -> int:
    """Bytes that each rank sends to sum so many over all ranks: reduce-scatter, then all-gather."""
    return -(-2 * (world_size - 1) * num_bytes // world_size)


def with_size(header: bytes, size: int) -> bytes:
    """The header with another P."""
    return header[:28] + size.to_bytes(4, "little") + header[32:]


def describe(fields: tuple[Any, ...]) -> str:
    """A header's fields for people."""
    magic, step, bucket, stage, layout, _, size, scheme = fields
    if magic != MAGIC:
        # Behind a message there is room for a longer one than was expected, and there lies the next message.
        return f"what another scheme's longer message has covered, or another version of Eagleray ({magic!r})"
    name = scheme.rstrip(b"\0").decode(errors="replace")
    return f"step {step}, bucket {bucket}, stage {stage} ({name}, {size} bytes, layout {layout:016x})"
