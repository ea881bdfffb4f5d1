"""The register of compressors, the spec's own checks, and the byte formula."""

import os
import pickle
import subprocess
import sys
from contextlib import nullcontext
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError

from eagleray.compression import compressor, fitting, make_compressor
from eagleray.compression.stats import Stats
from eagleray.compression.wire import ring_bytes
from eagleray.errors import InputError, SpecError
from eagleray.groups import Group
from eagleray.specs.compression import CompressionSpec


@pytest.mark.parametrize("kind", ["none", "fp16", "bf16", "int8", "int4"])
def test_a_kind_names_its_compressor(kind):
    made = make_compressor(CompressionSpec(kind=kind))
    assert made.name == kind
    assert made.is_lossy == (kind != "none")


def test_an_unknown_kind_lists_the_known(monkeypatch):
    monkeypatch.delitem(compressor._factories, "bf16")
    with pytest.raises(InputError, match=r"no compressor 'bf16'; choose from .*fp16"):
        make_compressor(CompressionSpec(kind="bf16"))


def test_a_compressor_of_ones_own_is_named_by_its_module(tmp_path, monkeypatch):
    members = (
        "    name, keeps_dtype, is_lossy = 'mine', True, True\n    bind = plan = sends_residual = print\n"
    )
    (tmp_path / "my_own.py").write_text(
        f"class Mine:\n{members}    def __init__(self, spec):\n        self.spec = spec\n"
        "class Part:\n    name = 'part'\n    def __init__(self, spec): pass\n"
        "class Bare: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = CompressionSpec(kind="my_own:Mine", ratio=0.5)
    made: Any = make_compressor(spec)
    assert made.spec is spec
    with pytest.raises(
        SpecError, match=r"compression.kind 'my_own:Nine': 'my_own' has no function or class 'Nine'"
    ):
        make_compressor(CompressionSpec(kind="my_own:Nine"))
    with pytest.raises(SpecError, match=r"has no keeps_dtype, is_lossy, bind, plan, sends_residual"):
        make_compressor(CompressionSpec(kind="my_own:Part"))
    with pytest.raises(SpecError, match=r"is called with the spec, and: .*give it one argument"):
        make_compressor(CompressionSpec(kind="my_own:Bare"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_size", 0),
        ("block_size", 100),
        ("rank", 0),
        ("ratio", 0.0),
        ("ratio", 1.0),
        ("fidelity", "best"),
    ],
)
def test_values_that_make_no_sense_are_refused(key, value):
    with pytest.raises(ValidationError, match=key):
        CompressionSpec.model_validate({"kind": "int8", key: value})


def test_a_spec_made_in_a_script_is_refused_in_words():
    made: Any = CompressionSpec  # as from a script that no type checker has seen
    with pytest.raises(SpecError) as caught:
        made(kind="int8", block_size=100, blocks=3, ratio="much")
    assert str(caught.value).splitlines() == [
        "CompressionSpec: ratio: input should be a valid number (found 'much')",
    ]
    with pytest.raises(SpecError) as caught:
        made(kind="int8", block_size=100, blocks=3)
    assert [line.partition(";")[0] for line in str(caught.value).splitlines()] == [
        "CompressionSpec: block_size: 100 is not a power of two",
        "CompressionSpec: blocks: unknown key 'blocks'",
    ]
    with pytest.raises(SpecError, match="CompressionSpec: rank: only powersgd and auto use it"):
        made(kind="int8", rank=3)
    copied = pickle.loads(pickle.dumps(CompressionSpec(kind="int4", block_size=64)))
    assert copied == CompressionSpec(kind="int4", block_size=64)


@pytest.mark.parametrize(
    ("payload_bytes", "world_size", "expected"), [(100, 1, 0), (100, 2, 100), (100, 3, 134), (300, 4, 450)]
)
def test_ring_bytes(payload_bytes, world_size, expected):
    assert ring_bytes(payload_bytes, world_size) == expected


@pytest.mark.parametrize(
    ("device", "backend", "world_size", "is_refused"),
    [
        ("cuda:1", "gloo", 2, True),
        ("cuda:1", "gloo", 1, False),  # sends nothing
        ("cuda:1", "nccl", 2, False),
        ("cpu", "gloo", 2, False),
    ],
)
def test_gloo_does_not_send_from_a_gpu(device, backend, world_size, is_refused):
    group = Group("gradients", cast(Any, None), 0, world_size, backend)
    refusal = (
        pytest.raises(InputError, match=r"on cuda:1, and gloo.*over nccl") if is_refused else nullcontext()
    )
    with refusal:
        fitting.require_reach(torch.device(device), group)


def test_the_relative_error_is_that_of_the_last_sample():
    found = Stats()
    assert found.relative_error is None
    for sampled, wanted in ((None, None), (0.3, 0.3), (None, 0.3), (0.0, 0.0), (None, 0.0)):
        found = found.plus(Stats(relative_error=sampled))
        assert found.relative_error == wanted


def test_compression_needs_no_ray():
    code = "import sys, eagleray.compression; print([m for m in sys.modules if m.split('.')[0] == 'ray'])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
