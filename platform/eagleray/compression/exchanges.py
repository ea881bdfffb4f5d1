"""Two ways for a bucket's slices to cross between ranks: to all, or to the owners of their tiles and back.

A compressor says what the messages hold. When they are expected, sent, waited for and worked on is here, the
same for all: everything is sent as soon as it is encoded, and summed or decoded in the order of the slices.
And the mean of an uncompressed vector, in one piece.

Shapes: n ranks, P bytes of a message's body.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from eagleray.compression.wire import Message, Step, Wire


class ToAll:
    """A slice's messages where each rank sends the same to all others."""

    def __init__(self, size: int, wire: Wire, device: torch.device):
        """Make them; `size` is P."""
        messages = [wire.message(size, device) for _ in range(wire.world_size)]
        self.own = messages[wire.rank]
        self.others = [None if p == wire.rank else m for p, m in enumerate(messages)]
        self.bodies = [m.body for m in messages]
        """By rank: what it has sent."""


class ToOwners:
    """A slice's messages where each tile goes to its owner, and what the owner makes of it goes to all.

    What a rank sends to an owner and what comes back for it share their place: an owner sends its result when
    it has received everybody's.
    """

    def __init__(self, sizes: Sequence[int], wire: Wire, device: torch.device):
        """Make them; `sizes` is P by owner, the same in both directions."""
        n, rank = wire.world_size, wire.rank
        self.buffer, messages = wire.messages([*sizes, sizes[rank]], device)
        """The bodies that this rank sends, and the results, one behind the other, uint8."""
        own = messages.pop()
        self.result = messages[rank] if sizes[rank] else None
        """Of this rank's tiles."""
        self.outgoing: list[Message | None] = [
            None if p == rank or not sizes[p] else messages[p] for p in range(n)
        ]
        """By owner; and then their results."""
        self.incoming: list[Message | None] = [
            None if p == rank or not sizes[rank] else wire.message(sizes[rank], device) for p in range(n)
        ]
        self.bodies = [own.body if m is None else m.body for m in self.incoming]
        """By rank: what it has sent of this rank's tiles."""
        self.results_at = [m.at for m in messages]
        """By owner: first byte in the buffer of the result."""
        self.sent_at = [own.at if p == rank else at for p, at in enumerate(self.results_at)]
        """By owner: first byte in the buffer of what this rank sends."""


AllSlice = TypeVar("AllSlice", bound=ToAll)
OwnersSlice = TypeVar("OwnersSlice", bound=ToOwners)


def to_all(
    wire: Wire,
    step: Step,
    slices: Sequence[AllSlice],
    *,
    encode: Callable[[AllSlice], int],
    decode: Callable[[AllSlice], None],
) -> Generator[None, None, int]:
    """Exchange slices that all ranks send to all; yields before each wait.

    Args:
        wire: to the others.
        step: which bucket of which step.
        slices: with their messages.
        encode: writes what this rank sends of a slice; returns a parameter that is not finite, or -1.
        decode: takes what all have sent of it.

    Returns a parameter that is not finite on some rank, or -1.
    """
    for index, one in enumerate(slices):
        wire.expect(step, index, one.others)
    pending, bad = [], -1
    for index, one in enumerate(slices):
        found = encode(one)
        pending.append(wire.gather(step, index, one.own, one.others, found))
    for one, arriving in zip(slices, pending, strict=True):
        yield
        arriving.wait()
        bad = max(bad, arriving.bad_parameter)
        decode(one)
    return bad


def to_owners(
    wire: Wire,
    step: Step,
    slices: Sequence[OwnersSlice],
    *,
    encode: Callable[[OwnersSlice], int],
    reduce: Callable[[OwnersSlice, Message], int],
    decode: Callable[[OwnersSlice], None],
) -> Generator[None, None, int]:
    """Exchange slices whose tiles have owners; yields before each wait.

    Args:
        wire: to the others.
        step: which bucket of which step.
        slices: with their messages.
        encode: writes what this rank sends of a slice; returns a parameter that is not finite, or -1.
        reduce: makes the result of this rank's tiles from what all have sent of them; returns likewise.
        decode: takes all owners' results.

    Returns a parameter that is not finite on some rank, or -1.
    """
    for index, one in enumerate(slices):
        wire.expect(step, 2 * index, one.incoming)
        wire.expect(step, 2 * index + 1, one.outgoing)
    payloads, results, bad = [], [], -1
    for index, one in enumerate(slices):
        found = encode(one)
        payloads.append(wire.swap(step, 2 * index, one.outgoing, one.incoming, found))
    for index, one in enumerate(slices):
        yield
        payloads[index].wait()
        found = -1
        if one.result is not None:
            found = max(payloads[index].bad_parameter, reduce(one, one.result))
        results.append(wire.gather(step, 2 * index + 1, one.result, one.outgoing, found))
    for one, arriving in zip(slices, results, strict=True):
        yield
        arriving.wait()
        bad = max(bad, arriving.bad_parameter)
        decode(one)
    return bad


def mean_of(parts: Sequence[Tensor]) -> Tensor:
    """The mean of the ranks' tensors, float32: summed in the order given, times 1 / n once at the end."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total.mul_(1 / len(parts))


class MeanBuffers:
    """What `mean` works with; made once."""

    def __init__(self, wire: Wire, numel: int, device: torch.device | str = "cpu"):
        n = wire.world_size
        self.vector = torch.zeros(numel, device=device)
        """float32 [numel]: the caller's; afterwards the mean."""
        chunk = -(-numel // n)
        self.chunks = [self.vector[rank * chunk : (rank + 1) * chunk] for rank in range(n)]
        if n <= 2:  # each takes the mean of all
            self.chunks = [self.vector] * n
        sizes = [part.nbytes for part in self.chunks]
        own = sizes[wire.rank]
        self.outgoing = [None if p == wire.rank else wire.message(sizes[p], device) for p in range(n)]
        self.incoming = [None if p == wire.rank else wire.message(own, device) for p in range(n)]
        self.own = wire.message(own, device)
        self.others = [None if p == wire.rank else wire.message(sizes[p], device) for p in range(n)]


def mean(
    wire: Wire, step: Step, stage: int, buffers: MeanBuffers, bad_parameter: int = -1
) -> Generator[None, None, int]:
    """Write the mean over the ranks into `buffers.vector`, the same bits on all; yields before each wait.

    The sum of each element runs in the order of the ranks, in float32, wherever in the vector it lies.
    Uses the stages `stage` and `stage + 1`. Returns the largest `bad_parameter` of all ranks.
    """
    n, rank = wire.world_size, wire.rank
    if n > 2:
        wire.expect(step, stage, buffers.incoming)
        wire.expect(step, stage + 1, buffers.others)
    for part, message in zip(buffers.chunks, buffers.outgoing, strict=True):
        if message is not None:
            message.body.view(torch.float32).copy_(part)
    pending = wire.swap(step, stage, buffers.outgoing, buffers.incoming, bad_parameter)
    yield
    pending.wait()
    own = buffers.chunks[rank]
    parts = [own if message is None else message.body.view(torch.float32) for message in buffers.incoming]
    own.copy_(mean_of(parts))
    if n <= 2:
        return pending.bad_parameter
    buffers.own.body.view(torch.float32).copy_(own)
    pending = wire.gather(step, stage + 1, buffers.own, buffers.others, pending.bad_parameter)
    yield
    pending.wait()
    for part, message in zip(buffers.chunks, buffers.others, strict=True):
        if message is not None:
            part.copy_(message.body.view(torch.float32))
    return pending.bad_parameter
