"""Checkpoints whose copies run beside the next step: the same bytes as of those that are copied at once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from eagleray.packaging import CheckpointStore
from eagleray.packaging.manifest import Manifest, verify
from eagleray.specs import TrainSpec
from eagleray.training.snapshot import Committer
from integration.ranks.runs import digits_spec, train_rank
from support.worlds import run_world

STEPS, EVERY = 12, 3


def train_twice(rank: int, world_size: int, spec: TrainSpec, folders: list[str]) -> None:
    """A run whose copies are over when the commit returns; one in which they come after the next backward."""
    commit, fill = Committer.commit, Committer._fill

    def commit_at_once(self: Committer, *args: Any, **more: Any) -> None:
        commit(self, *args, **more)
        self.await_copies()

    def fill_late(self: Committer, tensors: Any) -> None:
        if tensors:
            time.sleep(0.1)
        fill(self, tensors)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Committer, "commit", commit_at_once)
        train_rank(rank, world_size, spec, folders[0])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Committer, "_fill", fill_late)
        train_rank(rank, world_size, spec, folders[1])


def checkpoints(folder: str) -> dict[str, Manifest]:
    store = CheckpointStore(f"{folder}/checkpoints").folder
    return {name: verify(store.child(name)) for name in store.list()}


@pytest.mark.parametrize(
    ("model", "compression"),
    [
        ({"kind": "cnn", "channels": [4], "norm": "batch"}, {"kind": "int8"}),
        ({"kind": "mlp", "hidden": [16]}, {"kind": "onebit_adam", "warmup_steps": 4}),
    ],
)
def test_late_copies_are_those_of_the_commit(
    tmp_path: Path, model: dict[str, Any], compression: dict[str, Any]
) -> None:
    spec = digits_spec(
        model=model,
        compression=compression,
        training={"steps": STEPS, "global_batch_size": 50},
        schedule={"kind": "cosine"},
        checkpoint={"every_steps": EVERY, "keep": STEPS},
    )
    folders = [str(tmp_path / name) for name in ("at_once", "late")]
    run_world(2, train_twice, spec, folders)
    at_once, late = map(checkpoints, folders)
    assert len(at_once) == STEPS // EVERY
    assert late == at_once
