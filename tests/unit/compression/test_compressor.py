"""Compressors by property, and the byte formula."""

import pytest
import torch

from eagleray.compression import make_compressor
from eagleray.compression.stats import ring_bytes
from eagleray.specs.train import CompressionSpec

EDGES = [0.0, -0.0, 1.0, -1.5, 2.0**-24, 65504.0, -65504.0, float("inf"), float("-inf"), float("nan")]


@pytest.mark.parametrize("kind", ["none", "fp16", "bf16"])
def test_decoding_gives_the_gradient_back_to_the_last_bit_of_the_wire(kind):
    compressor = make_compressor(CompressionSpec(kind=kind))
    assert compressor.name == kind
    gradient = torch.randn(10_000, generator=torch.Generator().manual_seed(1))
    payload = torch.empty(10_000, dtype=compressor.dtype or torch.float32)
    compressor.encode(gradient, payload)
    decoded = torch.empty_like(gradient)
    compressor.decode(payload, decoded)
    half_ulp = {"none": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}[kind]
    assert ((decoded - gradient).abs() <= half_ulp * gradient.abs() + 2.0**-25).all()
    compressor.decode(payload, decoded, accumulate=True)
    assert torch.equal(decoded, 2 * payload.float())


@pytest.mark.parametrize("kind", ["none", "fp16"])
def test_edges_of_the_range_survive(kind):
    compressor = make_compressor(CompressionSpec(kind=kind))
    gradient = torch.tensor(EDGES)
    payload = torch.empty(len(EDGES), dtype=compressor.dtype or torch.float32)
    compressor.encode(gradient, payload)
    decoded = torch.empty_like(gradient)
    compressor.decode(payload, decoded)
    torch.testing.assert_close(decoded, gradient, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("payload_bytes", "world_size", "expected"), [(100, 1, 0), (100, 2, 100), (100, 3, 134), (300, 4, 450)]
)
def test_ring_bytes(payload_bytes, world_size, expected):
    assert ring_bytes(payload_bytes, world_size) == expected
