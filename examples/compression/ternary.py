"""A compressor of one's own, whole: each number of a gradient as -1, 0 or 1, five of them in a byte.

    COMPRESSION=ternary:Ternary torchrun --nproc-per-node 2 examples/compression/compressed_ddp.py

In a spec: `code = ["examples/compression/ternary.py"]` and `compression.kind = "ternary:Ternary"`.

What a number loses stays on this rank, is added to its next gradient, and so is sent later.

Shapes: n ranks, N elements of a bucket, K of one parameter.
Source: threshold and scale of Ternary Weight Networks (arXiv 1605.04711), for gradients as in TernGrad (arXiv
1705.07878), with error feedback in place of its random rounding.
"""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import Tensor

from eagleray.compression.layout import Bucket, Layout, Place
from eagleray.compression.memory import Memory
from eagleray.compression.wire import Step, Wire
from eagleray.specs.compression import CompressionSpec

THRESHOLD = 0.7
"""Of the mean magnitude; what is smaller is sent as 0."""
POWERS = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8)
DIGITS = torch.arange(243).unsqueeze(1) // POWERS % 3 - 1.0
"""The five numbers that a byte stands for: float32 [243, 5]."""


class Ternary:
    """See `Compressor`."""

    name = "ternary"
    keeps_dtype = False
    is_lossy = True

    def __init__(self, spec: CompressionSpec):
        """Take the spec; there is nothing to set."""

    def bind(self, layout: Layout, wire: Wire, memory: Memory) -> None:
        """See `Compressor`. The residual is the one that all compressors share."""
        self.wire, self.residual = wire, memory.flat("residual", "mean")

    def sends_residual(self, place: Place) -> bool:
        """See `Compressor`: it compresses every parameter, the small ones too."""
        return True

    def plan(self, bucket: Bucket, device: torch.device) -> TernaryPlan:
        """See `Compressor`."""
        return TernaryPlan(self, bucket, device)


class TernaryPlan:
    """One bucket: each rank's codes go to all others. A parameter is a scale, float32, and its codes."""

    def __init__(self, compressor: Ternary, bucket: Bucket, device: torch.device):
        self._compressor, self._bucket = compressor, bucket
        self._powers, self._digits = POWERS.to(device), DIGITS.to(device)
        wire = compressor.wire
        sizes = [_num_bytes(place) for place in bucket.places]
        self._messages = [wire.message(sum(sizes), device) for _ in range(wire.world_size)]
        """By rank."""
        self._bodies = [message.body.split(sizes) for message in self._messages]
        """By rank, by parameter."""

    def run(self, gradient: Tensor, step: Step) -> Generator[None, None, int]:
        """See `Plan`."""
        wire, bad = self._compressor.wire, -1
        for index, (place, part) in enumerate(self._parts(gradient)):
            if not self._encode(part / step.loss_scale, place, self._bodies[wire.rank][index]):
                bad = index
        others = [None if rank == wire.rank else message for rank, message in enumerate(self._messages)]
        pending = wire.gather(step, 0, self._messages[wire.rank], others, bad)
        yield  # the engine begins the next bucket while this one is on its way
        pending.wait()
        for index, (place, part) in enumerate(self._parts(gradient)):
            total = self._decode(place, self._bodies[0][index])
            for bodies in self._bodies[1:]:  # in the order of the ranks: the same bits on all
                total += self._decode(place, bodies[index])
            part.copy_(total.mul_(step.loss_scale / wire.world_size))
        return pending.bad_parameter

    def _parts(self, gradient: Tensor) -> list[tuple[Place, Tensor]]:
        """Each parameter's part of the bucket."""
        places, starts = self._bucket.places, self._bucket.starts
        return [(p, gradient[at : at + p.numel]) for p, at in zip(places, starts, strict=True)]

    def _encode(self, gradient: Tensor, place: Place, body: Tensor) -> bool:
        """Write what is sent of a parameter [K] and keep the rest; False where it is not finite."""
        if place.is_dense:
            body.view(torch.float32).copy_(gradient)
            return bool(gradient.isfinite().all())
        scale, codes = body[:4].view(torch.float32), body[4:]
        most = float(gradient.abs().amax())
        if most == 0 or not math.isfinite(most):  # unused, or not finite: the residual stays as it is
            scale.fill_(0.0 if most == 0 else math.nan)
            return most == 0
        residual = self._compressor.residual[place.start : place.start + place.numel]
        residual += gradient
        size = residual.abs()
        is_sent = size > THRESHOLD * size.mean()
        scale.copy_((size * is_sent).sum() / is_sent.sum().clamp(min=1))
        signs = torch.zeros(5 * codes.numel(), dtype=torch.uint8, device=codes.device)
        signs[: place.numel] = residual.sign().mul_(is_sent).add_(1)
        torch.sum(signs.view(-1, 5) * self._powers, 1, dtype=torch.uint8, out=codes)
        residual -= self._decode(place, body)
        return True

    def _decode(self, place: Place, body: Tensor) -> Tensor:
        """What a body stands for, float32 [K]."""
        if place.is_dense:
            return body.view(torch.float32).clone()
        return self._digits[body[4:].int()].view(-1)[: place.numel] * body[:4].view(torch.float32)


def _num_bytes(place: Place) -> int:
    """Of a parameter in a message; a multiple of 4."""
    return 4 * place.numel if place.is_dense else 4 + -(-place.numel // 20) * 4
