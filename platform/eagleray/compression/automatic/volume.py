"""What each kind sends for a bucket: bytes by formula, and in how many legs. Nothing is made or sent.

Without the headers, which are 64 bytes a message. The tests hold the formulas against what the compressors
hand to the wire.

Shapes: n ranks, D elements of a bucket that travel uncompressed, C others, P bytes of a whole payload.
"""

from __future__ import annotations

from collections.abc import Iterable

from eagleray.compression.automatic.timeline import Leg
from eagleray.compression.kernels import codec, sparse
from eagleray.compression.layout import TILE, Place
from eagleray.compression.powersgd import matrix_shape
from eagleray.compression.topk import GATHERED, count
from eagleray.specs.compression import CompressionSpec

_CODECS = {
    "bf16": "bf16",
    "fp16": "fp16",
    "int8": "int8",
    "int4": "int4",
    "fourbit_adam": "int4",
    "onebit_adam": "sign",
}
"""By kind, of those that are a codec and nothing else."""


def legs_of(
    spec: CompressionSpec, kind: str, places: Iterable[Place], world_size: int, *, element_bytes: int = 4
) -> tuple[Leg, ...]:
    """What each rank sends for a bucket of these parameters, in order; after any warm-up.

    Args:
        spec: block size, ratio, rank.
        kind: of compressor; `spec.kind` does not matter.
        places: the bucket's parameters.
        world_size: n.
        element_bytes: of the gradient, whose type `none` sends; the others take a float32 copy.
    """
    n, places = world_size, tuple(places)
    others = [place for place in places if not place.is_dense]
    numel = sum(place.numel for place in others)
    dense = sum(place.numel for place in places) - numel
    ring = 2 * (n - 1) / n
    if kind == "none":
        return _reduced(n, element_bytes * (numel + dense))
    if kind in _CODECS:
        return _reduced(n, 4 * dense + numel * _code_bytes(spec, kind))
    if kind == "int8_ring":
        return (Leg("swap", round(ring * 4 * dense)), Leg("sum", round(ring * numel)))
    if kind == "randomk":
        sent = sum(count(place.numel, spec.ratio) for place in others)
        return _reduced(n, 4 * dense + sent * _code_bytes(spec, "int8"))
    if kind == "topk":
        counts = [(place.numel, count(place.numel, spec.ratio)) for place in others]
        whole = 4 * dense + sum(sparse.payload_bytes(*one) for one in counts)
        if n > 2 and 4 * n * spec.ratio > GATHERED:
            return _reduced(n, whole)
        return (Leg("swap", (n - 1) * whole),)
    if kind == "powersgd":
        shapes = [(place, matrix_shape(place, spec.rank)) for place in others]
        whole = sum(4 * place.numel for place, shape in shapes if shape is None)
        whole += sum(2 * spec.rank * sum(shape) for _, shape in shapes if shape)  # one side a step, in turn
        return _reduced(n, 4 * dense + whole)
    raise KeyError(kind)


def _reduced(n: int, num_bytes: float) -> tuple[Leg, ...]:
    """Two ranks swap everything; more swap shares, and the owners' means come back."""
    if n <= 2:
        return (Leg("swap", round((n - 1) * num_bytes)),)
    share = Leg("swap", round((n - 1) / n * num_bytes))
    return (share, share)


def _code_bytes(spec: CompressionSpec, kind: str) -> float:
    """Of one element, its part of the scale included."""
    made = codec(_CODECS[kind], spec.block_size, "meta")  # nothing is encoded: no device, no compiled kernels
    return made.payload_bytes(TILE) / TILE
