"""examples/compression: the scripts run, the page shows what they differ in, ternary keeps the rules."""

from __future__ import annotations

import contextlib
import difflib
import io
import math
import os
import re
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from eagleray import groups
from eagleray.packaging import CheckpointStore, Folder
from eagleray.specs.compression import CompressionSpec
from eagleray.training.code import store_code
from integration.ranks.runs import digits_spec, train_rank
from support import blocks
from support.ranks import World
from support.worlds import run_world

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples/compression"
PLAIN, COMPRESSED = EXAMPLES / "plain_ddp.py", EXAMPLES / "compressed_ddp.py"
PAGE = ROOT / "docs/compression.md"
RUNS = {"plain": "", "int8": "int8", "auto": "auto", "ternary": "ternary:Ternary"}
"""What each run is called, and the kind of compression."""


def play(rank, world_size, folder):
    """What each run prints, by name."""
    groups.close_all()
    sys.path.insert(0, str(EXAMPLES))
    told, kept, destroy = {}, [], dist.destroy_process_group

    def destroy_later(group=None) -> None:
        """torch may wait for itself while it takes a group apart at once: see `groups`."""
        kept.append(group or dist.group.WORLD)
        destroy(group)

    for name, kind in RUNS.items():
        os.environ |= {"STEPS": "60", "COMPRESSION": kind}
        meeting = {"init_method": f"file://{folder}/{name}", "rank": rank, "world_size": world_size}
        with (  # a file in place of torchrun's port
            contextlib.redirect_stdout(io.StringIO()) as out,
            mock.patch.object(dist, "init_process_group", partial(dist.init_process_group, **meeting)),
            mock.patch.object(dist, "destroy_process_group", destroy_later),
        ):
            runpy.run_path(str(COMPRESSED if kind else PLAIN), run_name="__main__")
        told[name] = out.getvalue()
    return told


def test_the_scripts_run(tmp_path):
    said = run_world(2, play, str(tmp_path))[0]
    for name, text in said.items():
        accuracy = re.search(r"test accuracy (\d+\.\d)%", text)
        assert accuracy is not None, (name, text)
        assert float(accuracy[1]) > 85, (name, text)
    sent = {
        name: re.search(rf"compression {name}: sent (\S+) MB in place of (\S+) MB\n(.*)", text)
        for name, text in said.items()
    }
    ratios = {name: float(found[2]) / float(found[1]) for name, found in sent.items() if found}
    assert 3.7 < ratios["int8"] < 4.0
    assert 16 < ratios["ternary"] < 19
    assert sent["auto"]
    assert sent["auto"][3].startswith(("auto chose", "auto has not chosen yet"))


@pytest.mark.slow
def test_torchrun_starts_them():
    environment = os.environ | {"COMPRESSION": "ternary:Ternary", "PYTHONPATH": str(ROOT / "platform")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(COMPRESSED)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "compression ternary: sent" in done.stdout


def test_the_page_shows_what_the_scripts_differ_in():
    shown = [text.splitlines() for text in re.findall(r"^```diff\n(.*?)^```$", PAGE.read_text(), re.M | re.S)]
    plain, compressed = (path.read_text().partition("import os")[2] for path in (PLAIN, COMPRESSED))
    lines = difflib.ndiff(plain.splitlines(), compressed.splitlines())
    changed = [line for line in lines if line[0] in "+-" and line[2:].strip()]
    assert [line[0] + line[2:] for line in changed] == [line for line in shown[0] if line[0] in "+-"]


def test_a_spec_names_the_compressor_by_its_file(tmp_path):
    spec = digits_spec(
        code=[str(EXAMPLES / "ternary.py")],
        compression={"kind": "ternary:Ternary", "dense_below": 100},
        training={"steps": 40, "global_batch_size": 50},
    )
    store_code(spec.code, Folder(str(tmp_path)))
    first, second = run_world(2, train_rank, spec, str(tmp_path))
    assert first["outcome"]["weights_digest"] == second["outcome"]["weights_digest"]
    sent = [record["buckets"][0] for record in first["records"] if record["kind"] == "buckets"][-1]
    assert sent["ratio"] > 10
    newest = CheckpointStore(str(tmp_path / "checkpoints")).newest(print)
    assert newest is not None
    assert newest.tensors("compression"), "its residual is in the checkpoint"


def test_the_page_quotes_the_example_as_it_is():
    quoted = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    source = (EXAMPLES / "ternary.py").read_text()
    assert quoted
    assert all(text in source for text in quoted)


def run_page(rank, world_size):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        names = blocks.run(PAGE)
    names["hook"].close()
    return names["notes"], out.getvalue()


def test_the_page_runs_from_top_to_bottom():
    for notes, printed in run_world(2, run_page):
        assert notes == []
        assert printed == "0.weight is not finite on some rank: no optimizer step\n"


SHAPES = {"w": (70, 90), "b": (90,), "v": (33, 41)}


@pytest.fixture
def ternary():
    """A world of so many ranks with the example's compressor."""
    made = runpy.run_path(str(EXAMPLES / "ternary.py"))["Ternary"]
    return lambda size, buckets=None: World(size, SHAPES, lambda: made(CompressionSpec()), buckets)


def gradients(step, size):
    generator = torch.Generator().manual_seed(step)
    return [
        {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()} for _ in range(size)
    ]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ternary_sends_later_what_it_lost_whatever_the_buckets(ternary, size):
    one, many = ternary(size), ternary(size, [["b", "v"], ["w"]])
    wanted = {name: torch.zeros(math.prod(shape)) for name, shape in SHAPES.items()}
    got = {name: torch.zeros_like(value) for name, value in wanted.items()}
    for step in range(1, 20):
        given = gradients(step, size)
        found = one.exchange(given, step, loss_scale=4.0)
        others = many.exchange(given, step, loss_scale=4.0)
        for name in SHAPES:
            assert torch.equal(found[name], others[name])
            wanted[name] += torch.stack([rank[name] for rank in given]).mean(0).flatten()
            got[name] += found[name]
    assert one.state_bits() == many.state_bits()
    owed = torch.stack([memory.flat("residual", "mean") for memory in one.memories]).mean(0) * 4.0
    for name, place in one.layout.places.items():
        total = got[name] + owed[place.start : place.start + place.numel]
        torch.testing.assert_close(total, wanted[name], rtol=1e-4, atol=1e-4)


def test_ternary_keeps_what_is_not_finite_and_what_is_unused_out_of_its_residual(ternary):
    world = ternary(2)
    world.exchange(gradients(1, 2), 1)
    before = [memory.flat("residual", "mean").clone() for memory in world.memories]
    given = gradients(2, 2)
    given[1]["w"][3, 4] = math.nan
    for rank in given:
        rank["v"].zero_()
    found = world.exchange(given, 2)
    assert world.bad[-1] == "w"
    assert found["w"].isnan().all()
    assert not found["v"].any()
    place = world.layout.places["w"]
    sent, lost = (memory.flat("residual", "mean") for memory in world.memories)
    assert torch.equal(lost, before[1])
    assert torch.equal(sent[place.start + place.numel :], before[0][place.start + place.numel :])
