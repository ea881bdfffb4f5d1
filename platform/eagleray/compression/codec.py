"""Codecs: how a run of numbers looks as bytes. They hold no state; what was lost goes to the residual given.

A codec works on a table of tiles (`layout`), so that one call does a whole slice of a bucket: on a CPU the
compiled kernels (`kernels.native`), elsewhere and without a compiler torch operations (`kernels.eager`),
which are their reference: both give the same bits.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from eagleray.compression.layout import NUMEL, PAYLOAD


class Codec(Protocol):
    """Shapes: K tiles, B elements of a block (each with its scale), P bytes of a payload."""

    name: str
    block: int
    """B; divides TILE. Blocks start at the tile's first element; the last of a parameter may be short."""
    keeps_residual: bool
    """Whether what it loses is worth a residual."""

    def payload_bytes(self, numel: int) -> int:
        """Size of a tile of `numel` elements on the wire: scales, then codes; a multiple of 8."""
        ...

    def encode(
        self,
        source: Tensor,
        tiles: Tensor,
        payload: Tensor,
        residual: Tensor | None = None,
        *,
        gain_in: float = 1.0,
        keep: float = 0.0,
        gain_out: float = 1.0,
        used: Tensor | None = None,
    ) -> int:
        """Encode v = source + gain_in * residual; then residual = keep * residual + gain_out * (v - decoded).

        A worker's gradient, scaled by a loss scale s: gain_in = s, keep = 0, gain_out = 1 / s. An owner's
        mean of n ranks: gain_in = 0, keep = 1, gain_out = n / s: what it loses comes back through its own
        residual.
        A block that is not finite travels with the scale NaN, decodes to NaN and leaves its residual alone.

        Args:
            source: float32, flat; GRADIENT counts in it.
            tiles: int64 [K, 5] on the CPU.
            payload: uint8, flat; PAYLOAD counts in it, in multiples of 8 bytes.
            residual: float32 [M]; FLAT counts in it. None: v = source, and nothing is kept.
            gain_in: see above.
            keep: see above.
            gain_out: see above.
            used: uint8, one per parameter of the bucket; where 0 zeros are sent and the residual stays:
                nobody may apply what this rank would send for a parameter without a gradient.

        Returns the index of the first parameter with a block that is not finite, or -1.
        """
        ...

    def decode(
        self, payload: Tensor, tiles: Tensor, out: Tensor, *, accumulate: bool = False, factor: float = 1.0
    ) -> None:
        """Write `factor` times what the payload stands for into `out` (GRADIENT counts in it), or add it."""
        ...

    def reduce(
        self,
        payloads: list[Tensor],
        tiles: Tensor,
        payload: Tensor,
        residual: Tensor | None = None,
        *,
        gain_out: float = 1.0,
    ) -> int:
        """Encode the mean of n payloads, summed in the order given in float32, times 1 / n once at the end.

        All n have the PAYLOAD offsets of `tiles`, and so has `payload`, where the mean's code goes.
        With a residual: residual += gain_out * (mean - decoded). Returns like `encode`.
        """
        ...


def pack(tiles: Tensor, codec: Codec, start: int = 0) -> int:
    """Lay the tiles' payloads one behind the other from byte `start`; sets PAYLOAD, returns the end."""
    for row in tiles:
        row[PAYLOAD] = start
        start += codec.payload_bytes(int(row[NUMEL]))
    return start
