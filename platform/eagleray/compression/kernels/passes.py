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

    def select(
        self,
        source: Tensor,
        threshold: float,
        offsets: Tensor,
        values: Tensor,
        *,
        residual: Tensor | None = None,
        gain: float = 1.0,
    ) -> int:
        """Write offsets, ascending, and values of v = source + gain * residual where |v| >= threshold.

        Args:
            source: [E]; not changed, nor is the residual.
            threshold: not negative. NaN is never selected.
            offsets: int32, or of 16 bits where E <= 65536 (its bits are those of a uint16).
            values: float32, as long as `offsets`; both are filled as far as they go.
            residual: [E], or None.
            gain: see above.

        Returns how many there are, also where that is more than `offsets` holds.
        """
        ...

    def used(self, source: Tensor, spans: Tensor) -> Tensor:
        """uint8 [P] on the CPU: 1 where a span has anything but zeros (looks no further than it must)."""
        ...

    def absmax(self, source: Tensor, spans: Tensor) -> Tensor:
        """float32 [P], where the source is: largest magnitude of each span; 0 if empty, NaN if it has one."""
        ...

    def first_bad(self, source: Tensor, spans: Tensor) -> int:
        """The first span with a NaN or an infinity, or -1."""
        ...


class EagerPasses:
    """The reference; works on any device, and waits for it once in each call."""

    def select(
        self,
        source: Tensor,
        threshold: float,
        offsets: Tensor,
        values: Tensor,
        *,
        residual: Tensor | None = None,
        gain: float = 1.0,
    ) -> int:
        """See `Passes`."""
        check_room(source, offsets, values, residual)
        v = source if residual is None else source + residual * gain
        found = (v.abs() >= threshold).nonzero().flatten()
        kept = found[: offsets.numel()]
        offsets[: len(kept)] = kept.to(offsets.dtype)
        values[: len(kept)] = v[kept]
        return len(found)

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

    def first_bad(self, source: Tensor, spans: Tensor) -> int:
        """See `Passes`."""
        bad = (~self.absmax(source, spans).isfinite()).nonzero().flatten().tolist()
        return bad[0] if bad else -1


def check_spans(source: Tensor, spans: Tensor) -> None:
    """Raises: IndexError where a span leaves the tensor."""
    if len(spans) and (int(spans.min()) < 0 or int(spans.sum(dim=1).max()) > source.numel()):
        raise IndexError(f"a span reaches {int(spans.sum(dim=1).max())} in a tensor of {source.numel()}")


def check_room(source: Tensor, offsets: Tensor, values: Tensor, residual: Tensor | None) -> None:
    """Raises: IndexError where an output is too short, or its offsets too narrow."""
    if values.numel() < offsets.numel() or (residual is not None and residual.numel() != source.numel()):
        raise IndexError("values are fewer than offsets, or the residual is not as long as the source")
    if offsets.element_size() not in (2, 4) or (offsets.element_size() == 2 and source.numel() > 1 << 16):
        raise IndexError(f"offsets of type {offsets.dtype} cannot count to {source.numel()}")
