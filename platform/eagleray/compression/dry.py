"""A plan by itself: a wire without peers, and a bucket like the model's. To measure a codec, or to try it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eagleray.compression.layout import Bucket, Layout, Place
from eagleray.compression.wire import Message, Pending, Step, Wire, ring_bytes
from eagleray.groups import Group


def sample_of(layout: Layout, most: int) -> tuple[Layout, Bucket]:
    """A layout of one bucket of `most` elements or so: the model's last parameters, as in backward."""
    chosen: list[tuple[Place, tuple[int, ...]]] = []
    numel = 0
    for place in reversed(layout.places.values()):
        if numel >= most:
            break
        row = max(1, place.numel // max(1, place.shape[0])) if place.shape else 1
        rows = min(place.shape[0], max(1, (most - numel) // row)) if place.shape else 1
        shape = (rows, *place.shape[1:]) if place.shape else ()
        chosen.append((place, shape))
        numel += rows * row
    sample = Layout(
        ((place.name, shape) for place, shape in chosen),
        world_size=layout.world_size,
        dense_below=0,
        keep_dense=[place.name for place, _ in chosen if place.is_dense],
    )
    return sample, Bucket.packed(sample.places.values())


class DryWire(Wire):
    """A wire whose peers send at once what this rank sends: what is left is the codec and the bytes."""

    def __init__(self, world_size: int, device: torch.device, rank: int = 0):
        self.device = device
        super().__init__(Group("dry", None, rank, world_size, "gloo"))  # pyright: ignore[reportArgumentType]
        self.is_first = True
        """Whether messages are filled; they keep what they hold."""

    def expect(self, step: Step, stage: int, incoming: Sequence[Message | None]) -> None:
        """Nothing comes."""

    def swap(
        self,
        step: Step,
        stage: int,
        outgoing: Sequence[Message | None],
        incoming: Sequence[Message | None],
        bad_parameter: int = -1,
    ) -> Pending:
        """Count; the first time, let peers answer with the like."""
        for out, into in zip(outgoing, incoming, strict=True):
            if out is not None:
                self._count(out.data.numel(), out.body.numel())
            if self.is_first and out is not None and into is not None and out.data.shape == into.data.shape:
                into.body.copy_(out.body)
        return Pending(self, step, stage, bad_parameter)

    def sum(self, step: Step, stage: int, tensor: Tensor, bad_parameter: int = -1) -> Pending:
        """Count."""
        sent = ring_bytes(tensor.nbytes, self.world_size)
        self._count(sent, sent)
        return Pending(self, step, stage, bad_parameter)

    def share(self, own: bytes) -> list[bytes]:
        """All have to say what this rank says."""
        return [own] * self.world_size

    def settle(self, step_number: int) -> None:
        """Nothing is on its way."""
