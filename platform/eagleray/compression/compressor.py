"""Compressors: how the mean of a bucket's gradients comes about with fewer bytes. One file each.

`compressors.py` lists them. To add one, write a class with the methods of `Compressor`, register it there,
and add its name to the kinds of `specs/compression.py`; or leave it where it is, and name it in the spec as
`module:name` (examples/compression/ternary.py).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol

import torch
from torch import Tensor

from eagleray.compression.layout import Bucket, Layout, Place
from eagleray.compression.memory import Memory
from eagleray.compression.wire import Step, Wire
from eagleray.errors import InputError, SpecError
from eagleray.specs.compression import CompressionSpec
from eagleray.specs.functions import import_function


class Plan(Protocol):
    """One bucket of DDP's, with its buffers, which are made once."""

    def run(self, gradient: Tensor, step: Step) -> Generator[None, None, int]:
        """Exchange one gradient, float32 [N], which holds the mean over the ranks afterwards.

        The mean has the same bits on all ranks, and for a parameter the same whatever bucket it lies in.
        Yields before each wait for the network: the engine may begin the next bucket meanwhile. A parameter
        whose gradient is all zero here is sent as zeros, and its residual stays.

        Returns the index in the bucket of a parameter that was not finite on some rank, the same on all of
        them, or -1. Then its gradient is not finite on any rank, and nothing of it has entered a residual.
        """
        ...


class Compressor(Protocol):
    """One model's: holds its settings, and its state only in the memory that it is bound to."""

    name: str
    keeps_dtype: bool
    """Its plans take gradients of any float type; those of others are given a float32 copy."""
    is_lossy: bool
    """What it sends is less than the gradient, so that a rank alone can rehearse it."""

    def bind(self, layout: Layout, wire: Wire, memory: Memory) -> None:
        """Take the model, the ranks and the state; before the first plan, and again after a resize."""
        ...

    def sends_residual(self, place: Place) -> bool:
        """Whether its plans send, sooner or later, what lies in the memory's slot "residual" for a parameter.

        Where not, what another compressor has left there goes out with the next gradient (`Memory.repay`).
        """
        ...

    def plan(self, bucket: Bucket, device: torch.device) -> Plan:
        """Make the buffers for a bucket."""
        ...


_factories: dict[str, Callable[[CompressionSpec], Compressor]] = {}


def register(name: str, factory: Callable[[CompressionSpec], Compressor]) -> None:
    """Make `name` a kind of compression."""
    _factories[name] = factory


def kinds() -> list[str]:
    """The names of all compressors."""
    return sorted(_factories)


_MEMBERS = ("name", "keeps_dtype", "is_lossy", "bind", "plan", "sends_residual")
"""Of a `Compressor`."""


def make_compressor(spec: CompressionSpec) -> Compressor:
    """The compressor that `spec.kind` names: a registered one, or `module:name`, called with the spec.

    Raises: InputError: there is none, or the module cannot be imported.
    """
    if ":" in spec.kind:
        return _own(spec)
    factory = _factories.get(spec.kind)
    if factory is None:
        raise InputError(f"there is no compressor {spec.kind!r}; choose from {', '.join(kinds())}")
    return factory(spec)


def _own(spec: CompressionSpec) -> Compressor:
    """A compressor of the user's. Raises: SpecError: it cannot be made, or lacks something."""
    what = f"compression.kind {spec.kind!r}"
    factory = import_function(spec.kind, what, SpecError)
    try:
        made = factory(spec)
    except TypeError as error:
        raise SpecError(f"{what} is called with the spec, and: {error}; give it one argument") from error
    if missing := lacking(made):
        raise SpecError(
            f"{what} has no {', '.join(missing)}; eagleray.compression.Compressor says what a compressor has"
        )
    return made


def lacking(made: object) -> list[str]:
    """What an object has not of a `Compressor`'s members."""
    return [name for name in _MEMBERS if not hasattr(made, name)]
