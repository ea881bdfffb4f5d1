"""Compressors: how a bucket's gradient looks on the wire. `None_` is the plain case."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from eagleray.specs.train import CompressionSpec


class Compressor(Protocol):
    """Turns a gradient into a payload and back. Holds no state of a bucket."""

    name: str
    is_encoded: bool
    """False: the gradient travels in its own dtype, where the exchange allows in its own buffer."""

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the payload; None where nothing is encoded."""
        ...

    def encode(self, gradient: Tensor, payload: Tensor) -> None:
        """Write the payload of `gradient`, [N] floating, into `payload`, [N]."""
        ...

    def decode(self, payload: Tensor, out: Tensor, *, accumulate: bool = False) -> None:
        """Write what `payload`, [N], stands for into `out`, [N] floating, or add it there."""
        ...


class None_:  # noqa: N801 - named as in the spec
    """Sends the gradient as it is: float64 stays float64."""

    name = "none"
    is_encoded = False
    dtype = None

    def encode(self, gradient: Tensor, payload: Tensor) -> None:
        """A copy."""
        payload.copy_(gradient)

    def decode(self, payload: Tensor, out: Tensor, *, accumulate: bool = False) -> None:
        """A copy, or a sum."""
        out.add_(payload) if accumulate else out.copy_(payload)


class _Cast:
    """Sends each value rounded to a narrower float.

    Nothing is scaled before the cast: dividing by the world size there would push small gradients out of
    fp16's range. The mean is taken in float32 by the exchange, so it cannot overflow where the inputs do
    not. Values beyond the narrow range become inf, and inf and nan stay what they are: visible on all ranks.
    """

    name: str
    is_encoded = True
    dtype: torch.dtype

    def encode(self, gradient: Tensor, payload: Tensor) -> None:
        """Round to nearest even."""
        payload.copy_(gradient)

    def decode(self, payload: Tensor, out: Tensor, *, accumulate: bool = False) -> None:
        """Widen; exact."""
        out.add_(payload) if accumulate else out.copy_(payload)


class Fp16(_Cast):
    """Half precision: 10 bits of mantissa, values from 6e-8 to 65504."""

    name = "fp16"
    dtype = torch.float16


class Bf16(_Cast):
    """Brain float: 7 bits of mantissa, the range of float32."""

    name = "bf16"
    dtype = torch.bfloat16


_KINDS: dict[str, type[None_] | type[Fp16] | type[Bf16]] = {"none": None_, "fp16": Fp16, "bf16": Bf16}


def make_compressor(spec: CompressionSpec) -> Compressor:
    """The compressor that `spec.kind` names."""
    return _KINDS[spec.kind]()
