"""Where each parameter lies in a model's flat space, and how it is cut into tiles.

Nothing here depends on DDP's buckets, which change after the first step and with every resize: which numbers
share a block, which rank takes the mean of a tile, and where a residual is kept follow from the model alone.
So a resumed run sums the same numbers in the same order, whatever its buckets.

Shapes: N elements of a bucket, P parameters of it, M elements of the flat space, K tiles, n ranks.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 4096
"""Elements of a tile: the unit that one rank owns. A multiple of every codec's block."""
ALIGNMENT = 16
"""Each parameter starts at a multiple of so many elements (64 bytes) of the flat space."""
GRADIENT, FLAT, NUMEL, PAYLOAD, PARAMETER = range(5)
"""Columns of a table of tiles, int64 [K, 5]: first element in the gradient (or another source), first element
in the flat space, number of elements, first byte in the payload, index of the parameter in its bucket."""


@dataclass(frozen=True)
class Place:
    """One parameter in the flat space."""

    name: str
    shape: tuple[int, ...]
    start: int
    """First element in the flat space."""
    first_tile: int
    """Number of tiles before it in the model: its tile t belongs to rank (first_tile + t) mod n."""
    is_dense: bool
    """It travels uncompressed: a norm, a bias, or too small to be worth a scale."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_tiles(self) -> int:
        """Number of tiles, the last of which may be short."""
        return -(-self.numel // TILE)

    def tile_row(self, tile: int, start: int, index: int) -> list[int]:
        """A tile's row of a table; PAYLOAD is 0.

        Args:
            tile: of this parameter.
            start: the parameter's first element in the gradient.
            index: of the parameter in its bucket.
        """
        at = tile * TILE
        return [start + at, self.start + at, min(TILE, self.numel - at), 0, index]


class Layout:
    """The flat space of a model's parameters that take a gradient, in the model's own order."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, Sequence[int]]],
        *,
        world_size: int,
        dense_below: int = 1024,
        keep_dense: Iterable[str] = (),
    ):
        """Lay out.

        Args:
            parameters: name and shape of each.
            world_size: n.
            dense_below: parameters of fewer elements, and those of one dimension or none, are dense, and
                so are empty ones.
            keep_dense: names that are dense whatever their size.
        """
        self.world_size = world_size
        self.places: dict[str, Place] = {}
        kept, start, first_tile = frozenset(keep_dense), 0, 0
        for name, shape in parameters:
            numel = math.prod(shape)
            is_dense = len(shape) < 2 or numel < max(1, dense_below) or name in kept
            place = Place(name, tuple(shape), start, first_tile, is_dense)
            self.places[name] = place
            start += -(-numel // ALIGNMENT) * ALIGNMENT
            first_tile += place.num_tiles
        self.numel = start
        """M."""
        self.digest = self._digest()
        """64 bits that differ where two ranks do not have the same layout."""

    def owner(self, place: Place, tile: int) -> int:
        """The rank that takes the mean of the parameter's tile."""
        return (place.first_tile + tile) % self.world_size

    def flat_views(self, flat: Tensor) -> dict[str, Tensor]:
        """Each parameter's part of a flat tensor [M], in the parameter's shape."""
        return {
            place.name: flat[place.start : place.start + place.numel].view(place.shape)
            for place in self.places.values()
        }

    def _digest(self) -> int:
        said = hashlib.sha256(f"{self.world_size} {TILE}".encode())
        for place in self.places.values():
            said.update(f"{place.name} {place.shape} {place.is_dense}\n".encode())
        return int.from_bytes(said.digest()[:8], "little")


@dataclass(frozen=True)
class Bucket:
    """Which parameters lie in one of DDP's buckets, in its order."""

    places: tuple[Place, ...]
    starts: tuple[int, ...]
    """First element of each in the bucket's buffer."""

    @classmethod
    def packed(cls, places: Iterable[Place]) -> Bucket:
        """One parameter right behind the other."""
        found = tuple(places)
        ends = itertools.accumulate((place.numel for place in found), initial=0)
        return cls(found, tuple(ends)[:-1])

    @property
    def parts(self) -> Iterator[tuple[Place, int]]:
        """Each parameter, and its first element in the buffer."""
        return zip(self.places, self.starts, strict=True)

    @property
    def spans(self) -> Tensor:
        """First element and number of elements of each in the buffer, int64 [P, 2] on the CPU."""
        rows = [[start, place.numel] for place, start in self.parts]
        return torch.tensor(rows, dtype=torch.int64).view(-1, 2)

    @property
    def key(self) -> tuple[str, ...]:
        """The parameters' names: what tells buckets apart (their indices change after the first step)."""
        return tuple(place.name for place in self.places)

    @property
    def numel(self) -> int:
        """N."""
        return self.starts[-1] + self.places[-1].numel if self.places else 0


def cut(bucket: Bucket, layout: Layout, *, owner: int | None = None, dense: bool | None = None) -> Tensor:
    """The bucket's tiles as a table, int64 [K, 5], in the bucket's order; PAYLOAD is 0 (`pack` sets it).

    Args:
        bucket: what to cut.
        layout: where it lies.
        owner: only this rank's tiles; all where None.
        dense: only those of dense (True) or of compressed (False) parameters; all where None.
    """
    rows = [
        place.tile_row(t, start, index)
        for index, (place, start) in enumerate(bucket.parts)
        if dense is None or place.is_dense == dense
        for t in range(place.num_tiles)
        if owner is None or layout.owner(place, t) == owner
    ]
    return torch.tensor(rows, dtype=torch.int64).view(-1, 5)
