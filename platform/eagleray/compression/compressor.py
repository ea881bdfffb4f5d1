"""Compressors: how a bucket's gradient looks on the wire. `None_` is the plain case."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from eagleray.specs.train import CompressionSpec


class Compressor(Protocol):
    """Turns a gradient into a payload and back. Holds no state of a bucket."""

    name: str

    def payload_dtype(self, gradient_dtype: torch.dtype) -> torch.dtype:
        """The dtype on the wire; the gradient's own where nothing is to be encoded."""
        ...

    def encode(self, gradient: Tensor, payload: Tensor) -> None:
        """Write the payload of `gradient`, [N]; `payload`, [N], holds it afterwards."""
        ...

    def decode(self, payload: Tensor, gradient: Tensor) -> None:
        """Write what `payload`, [N], stands for into `gradient`, [N]."""
        ...


class None_:  # noqa: N801 - named as in the spec
    """Sends the gradient as it is."""

    name = "none"

    def payload_dtype(self, gradient_dtype: torch.dtype) -> torch.dtype:
        """The gradient's own: float64 stays float64."""
        return gradient_dtype

    def encode(self, gradient: Tensor, payload: Tensor) -> None:
        """Copy, where the payload is not the gradient itself."""
        if payload.data_ptr() != gradient.data_ptr():
            payload.copy_(gradient)

    def decode(self, payload: Tensor, gradient: Tensor) -> None:
        """Copy, where the payload is not the gradient itself."""
        self.encode(payload, gradient)


class _Cast:
    """Sends each value rounded to a narrower float.

    Nothing is scaled before the cast: dividing by the world size there would push small gradients out of
    fp16's range. The mean is taken in float32 by the exchange, so it cannot overflow where the inputs do
    not. Values beyond the narrow range become inf, and inf and nan stay what they are: visible on all ranks.
    """

    name: str
    _dtype: torch.dtype

    def payload_dtype(self, gradient_dtype: torch.dtype) -> torch.dtype:
        """The narrow float, whatever the gradient's dtype."""
        return self._dtype

    def encode(self, gradient: Tensor, payload: Tensor) -> None:
        """Round to nearest even."""
        payload.copy_(gradient)

    def decode(self, payload: Tensor, gradient: Tensor) -> None:
        """Widen; exact."""
        gradient.copy_(payload)


class Fp16(_Cast):
    """Half precision: 10 bits of mantissa, values from 6e-8 to 65504."""

    name = "fp16"
    _dtype = torch.float16


class Bf16(_Cast):
    """Brain float: 7 bits of mantissa, the range of float32."""

    name = "bf16"
    _dtype = torch.bfloat16


_KINDS: dict[str, type[None_] | type[Fp16] | type[Bf16]] = {"none": None_, "fp16": Fp16, "bf16": Bf16}


def make_compressor(spec: CompressionSpec) -> Compressor:
    """The compressor that `spec.kind` names."""
    return _KINDS[spec.kind]()
