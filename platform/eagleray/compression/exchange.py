"""Exchanges: how the mean of the ranks' payloads comes about. All ranks end with the same bits.

Shapes: n ranks, N elements of a bucket, C = ceil(N / n) elements of a rank's chunk.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from eagleray.compression.compressor import Compressor
from eagleray.groups import Group

BLOCK = 1 << 18
"""Elements summed at a time: 1 MiB of float32, so that the passes over it stay in the cache."""


class Exchange(Protocol):
    """The mean of one bucket over the ranks, in three moves. Holds the bucket's buffers."""

    payload: Tensor
    """[N], dtype of the wire: what the compressor's `encode` fills."""

    def send(self) -> None:
        """Send what the payload holds, and receive."""
        ...

    def read(self, gradient: Tensor) -> None:
        """Write the mean into `gradient`, [N]; the same bits on all ranks."""
        ...


class RingMean:
    """One all-reduce in place, after dividing by n, as DDP does without a hook. For what is not encoded.

    From 3 ranks on a ring adds in an order that depends on the place in the bucket, and DDP cuts its buckets
    anew after the first step of a process: a resumed run would differ in the last bit. So on gloo it serves
    2 ranks, whose sum commutes.
    """

    def __init__(self, gradient: Tensor, group: Group):
        self.payload, self._group = gradient, group

    def send(self) -> None:
        """The payload, which is the gradient itself, holds the mean afterwards."""
        self.payload.div_(self._group.world_size)
        self._group.process_group.allreduce([self.payload]).wait()

    def read(self, gradient: Tensor) -> None:
        """Nothing is left to do."""
        assert gradient.data_ptr() == self.payload.data_ptr()


class PairMean:
    """Two ranks: each sends its whole payload, both take the mean in float32.

    As many bytes as a ring, one round instead of two, and the mean is not rounded a second time.
    """

    def __init__(self, gradient: Tensor, compressor: Compressor, group: Group):
        self._compressor, self._group = compressor, group
        self.payload = _wire_buffer(gradient, compressor, gradient.numel())
        self._received = torch.empty_like(self.payload)
        self._sum = _sum_buffer(gradient)

    def send(self) -> None:
        """Swap payloads."""
        send_and_receive(self._group, [(1 - self._group.rank, self.payload, self._received)])

    def read(self, gradient: Tensor) -> None:
        """Both ranks add the same two numbers, and addition of two commutes bit for bit."""
        write_mean([self.payload, self._received], self._compressor, gradient, self._sum)


class ScatteredMean:
    """Each rank takes the mean of its chunk and sends it to all: reduce-scatter, all-gather.

    The sum runs in the order of the ranks, in float32 (float64 for such gradients), wherever in a bucket an
    element lies.

    Against gloo's own 16-bit all-reduce: two roundings whatever n instead of n; as fast in bf16 (8.5 M
    elements, 3 ranks on loopback: 53 against 52 ms) and faster in fp16 (53 against 72 ms). Rotated pairwise
    sends reach 85 % of a link's rate where gloo's all-to-all reaches 60 %; its reduce-scatter sends twice the
    bytes.
    """

    def __init__(self, gradient: Tensor, compressor: Compressor, group: Group):
        n = group.world_size
        chunk = -(-gradient.numel() // n)
        self._compressor, self._group = compressor, group
        self._outgoing_nC = _wire_buffer(gradient, compressor, n * chunk).view(n, chunk)
        self._incoming_nC = torch.zeros_like(self._outgoing_nC)
        self._sum = _sum_buffer(gradient)
        self.payload = self._outgoing_nC.view(-1)[: gradient.numel()]

    def send(self) -> None:
        """All means are in the buffer that the chunks went out from, afterwards."""
        group, rank, chunks = self._group, self._group.rank, self._outgoing_nC
        peers = [(rank + i) % group.world_size for i in range(1, group.world_size)]
        send_and_receive(group, [(peer, chunks[peer], self._incoming_nC[peer]) for peer in peers])
        self._incoming_nC[rank] = chunks[rank]
        write_mean(list(self._incoming_nC), self._compressor, chunks[rank], self._sum)
        send_and_receive(group, [(peer, chunks[rank], chunks[peer]) for peer in peers])

    def read(self, gradient: Tensor) -> None:
        """Every rank decodes the same bytes."""
        self._compressor.decode(self.payload, gradient)


def write_mean(payloads: list[Tensor], compressor: Compressor, out: Tensor, buffer: Tensor) -> None:
    """Write the mean of the payloads, [N] each, into `out`, [N], taken in the order given.

    `buffer`, [min(N, BLOCK)], is scratch, in the type of the sum.
    """
    for start in range(0, out.numel(), BLOCK):
        window = slice(start, min(start + BLOCK, out.numel()))
        mean = out[window] if out.dtype == buffer.dtype else buffer[: window.stop - start]
        for index, payload in enumerate(payloads):
            compressor.decode(payload[window], mean, accumulate=index > 0)
        mean.mul_(1 / len(payloads))
        if out.dtype != buffer.dtype:
            out[window].copy_(mean)


def send_and_receive(group: Group, messages: list[tuple[int, Tensor, Tensor]]) -> None:
    """Send to, and receive from, each listed peer: (peer, what to send, where to receive)."""
    pending = []
    if group.backend == "nccl":  # one launch: a receive would block the stream that the send waits on
        operations = [(dist.irecv, incoming, peer) for peer, _, incoming in messages]
        operations += [(dist.isend, outgoing, peer) for peer, outgoing, _ in messages]
        pending += dist.batch_isend_irecv([dist.P2POp(*one, group.process_group) for one in operations])
        messages = []
    for peer, outgoing, incoming in messages:
        pending.append(group.process_group.recv([incoming], peer, 0))
        pending.append(group.process_group.send([outgoing], peer, 0))
    for work in pending:
        work.wait()


def make_exchange(gradient: Tensor, compressor: Compressor, group: Group) -> Exchange:
    """The exchange for one bucket."""
    if not compressor.is_encoded and (group.world_size == 2 or group.backend == "nccl"):
        return RingMean(gradient, group)
    return (PairMean if group.world_size == 2 else ScatteredMean)(gradient, compressor, group)


def _wire_buffer(gradient: Tensor, compressor: Compressor, num_elements: int) -> Tensor:
    return torch.zeros(num_elements, dtype=compressor.dtype or gradient.dtype, device=gradient.device)


def _sum_buffer(gradient: Tensor) -> Tensor:
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    return torch.empty(min(BLOCK, gradient.numel()), dtype=dtype, device=gradient.device)
