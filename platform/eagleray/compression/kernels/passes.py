"""Passes over a gradient for sparse compressors and the engine, and their reference as torch operations.

Spans are int64 [P, 2] on the CPU: first element and number of elements of each parameter in a flat tensor.
Numbers are float32. The compiled passes (`native`) give the same results.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Passes(Protocol):
    """What one device can do."""

    def used(self, source: Tensor, spans: Tensor) -> Tensor:
        """uint8 [P] on the CPU: 1 where a span has anything but zeros (looks no further than it must)."""
        ...

    def absmax(self, source: Tensor, spans: Tensor) -> Tensor:
        """float32 [P], where the source is: largest magnitude of each span; 0 if empty, NaN if it has one."""
        ...


class EagerPasses:
    """The reference; works on any device, and waits for it once in each call."""

    def used(self, source: Tensor, spans: Tensor) -> Tensor:
        """See `Passes`."""
        return (self.absmax(source, spans) != 0).to(torch.uint8).cpu()

    def absmax(self, source: Tensor, spans: Tensor) -> Tensor:
        """See `Passes`."""
        check_spans(source, spans)
        nothing = source.new_zeros(())
        parts = [source[first : first + numel] for first, numel in spans.tolist()]
        most = [torch.linalg.vector_norm(part, torch.inf) if len(part) else nothing for part in parts]
        return torch.stack(most) if most else source.new_zeros(0)


def check_spans(source: Tensor, spans: Tensor) -> None:
    """Raises: IndexError where a span leaves the tensor."""
    if len(spans) and (int(spans.min()) < 0 or int(spans.sum(dim=1).max()) > source.numel()):
        raise IndexError(f"a span reaches {int(spans.sum(dim=1).max())} in a tensor of {source.numel()}")
