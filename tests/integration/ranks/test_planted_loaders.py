"""A loader with a fault in the real training loop: what the loss consumes is what the journal knows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eagleray.workflows.verify import verify
from integration.ranks.runs import digits_spec, train_rank
from support.worlds import run_world

BATCH, PLANTED = 50, 7
"""The fault is in the batch of this step."""
OTHER = 11
"""Whose batch a sample comes from too early."""


def train_planted(rank: int, world_size: int, spec: Any, folder: str, kind: str) -> tuple[int, int]:
    """Train with a loader that skips, repeats or swaps one sample; returns that, and what came for it."""
    from eagleray.data import Loader

    honest, seen = Loader.shard, {}

    def shard(loader: Any, consumed: int, rank: int, world_size: int) -> Any:
        found = honest(loader, consumed, rank, world_size)
        if consumed != (PLANTED - 1) * BATCH:
            return found
        own, other = found.positions[3], honest(loader, (OTHER - 1) * BATCH, rank, world_size).positions[0]
        seen["own"], seen["other"] = int(own), int(other)
        rest = found.positions if kind == "repeated" else found.positions[found.positions != own]
        taken = {"skipped": rest, "repeated": np.append(rest, own), "swapped": np.append(rest, other)}[kind]
        return loader._made(taken, False, found.global_size, found.epoch, found.consumed)

    Loader.shard = shard  # type: ignore[method-assign]
    train_rank(rank, world_size, spec, folder)
    return seen["own"], seen["other"]


@pytest.mark.parametrize("kind", ["skipped", "repeated", "swapped"])
def test_a_planted_loader_is_found_in_a_real_run(folder, kind):
    spec = digits_spec(training={"steps": 12, "global_batch_size": BATCH})
    [(own, other)] = run_world(1, train_planted, spec, str(folder), kind)
    (folder / "spec.json").write_text(spec.model_dump_json())
    found = verify("r", pytest.fail)
    assert (found.step, found.is_proven) == (12, False)
    [finding] = found.findings
    assert (finding.step, finding.kind) == (PLANTED, kind)
    assert finding.missing == (() if kind == "repeated" else (own,))
    assert finding.extra == {"skipped": (), "repeated": (own,), "swapped": (other,)}[kind]
