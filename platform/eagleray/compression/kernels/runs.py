"""A table of tiles as few strided views: no operation per tile, and no copy to gather tiles.

Tiles of one parameter that one rank owns lie at equal distances in the gradient, in the flat space and in the
payload; such a run is one view of each, [k, E] with E elements (or bytes) of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from eagleray.compression.layout import FLAT, GRADIENT, NUMEL, PARAMETER, PAYLOAD

ALIGN = 8
"""Payloads of tiles start at multiples of so many bytes, so that every type may be viewed in place."""
CPU_ELEMENTS = 1 << 16
"""Longest run on a CPU, in elements: what a run computes with stays in the cache (measured: 4x at 10 M)."""


class Run(NamedTuple):
    """k tiles at equal distances."""

    first: int
    """The first tile's row in the table."""
    tiles: int
    """k."""
    numel: int
    """Elements of each."""
    at: tuple[int, int, int]
    """First element in the gradient, in the flat space, first byte in the payload."""
    by: tuple[int, int, int]
    """Distance of neighbours there."""
    used: bool

    def view(self, tensor: Tensor, column: int, width: int) -> Tensor:
        """The run's part of a flat tensor, [k, width]; `column` is GRADIENT, FLAT or PAYLOAD."""
        axis = 2 if column == PAYLOAD else column
        step = self.by[axis] if self.tiles > 1 else width
        offset = tensor.storage_offset() + self.at[axis]
        return tensor.as_strided((self.tiles, width), (step, 1), offset)


def runs_of(tiles: Tensor, used: Tensor | None, device: torch.device) -> Iterator[Run]:
    """The table's runs, in its order; on a CPU none longer than the cache likes.

    Args:
        tiles: int64 [K, 5].
        used: uint8, one per parameter; a run is wholly used or wholly not.
        device: where the numbers are.
    """
    rows = tiles.tolist()
    flags = None if used is None else used.tolist()
    first = 0
    while first < len(rows):
        row = rows[first]
        numel = row[NUMEL]
        most = max(CPU_ELEMENTS // max(numel, 1), 1) if device.type == "cpu" else len(rows)
        is_used = flags is None or bool(flags[row[PARAMETER]])
        by, last, end = (0, 0, 0), row, first + 1
        while end < len(rows) and end - first < most:
            following = rows[end]
            step = (following[0] - last[0], following[1] - last[1], following[3] - last[3])
            if following[NUMEL] != numel or min(step) <= 0 or (end > first + 1 and step != by):
                break
            if flags is not None and bool(flags[following[PARAMETER]]) != is_used:
                break
            by, last, end = step, following, end + 1
        yield Run(first, end - first, numel, (row[GRADIENT], row[FLAT], row[PAYLOAD]), by, is_used)
        first = end


def check(
    tiles: Tensor,
    payload_bytes: Tensor,
    payloads: list[Tensor],
    *,
    gradient: Tensor | None = None,
    flat: Tensor | None = None,
    used: Tensor | None = None,
) -> None:
    """Compare a table with the tensors that it points into.

    Raises:
        IndexError: a tile leaves one of them, or a payload does not start at a multiple of ALIGN bytes.
    """
    if not len(tiles):
        return
    ends = tiles[:, [GRADIENT, FLAT, PAYLOAD]] + torch.stack(
        (tiles[:, NUMEL], tiles[:, NUMEL], payload_bytes), dim=1
    )
    ends_max = ends.amax(0).tolist()
    sizes = (
        ("gradient", ends_max[0], gradient),
        ("flat space", ends_max[1], flat),
        *(("payload", ends_max[2], payload) for payload in payloads),
        ("used flags", int(tiles[:, PARAMETER].max()) + 1, used),
    )
    for what, end, tensor in sizes:
        if tensor is not None and end > tensor.numel():
            raise IndexError(f"a table of tiles reaches {end} in a {what} of {tensor.numel()}")
    if int(tiles.min()) < 0 or bool((tiles[:, PAYLOAD] % ALIGN).any()):
        raise IndexError(f"a table of tiles has a negative entry, or a payload not at a multiple of {ALIGN}")
