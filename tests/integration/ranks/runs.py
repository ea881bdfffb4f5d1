"""Training runs without Ray: what `run_world` executes on each rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eagleray.specs import TrainSpec, validate
from eagleray.training.telemetry import Buffer
from eagleray.training.worker import Attempt, run

DIGITS: dict[str, Any] = {
    "kind": "train",
    "name": "t",
    "seed": 3,
    "data": {"kind": "digits", "normalize": "standard"},
    "model": {"kind": "mlp", "hidden": [16]},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "adamw", "lr": 0.01},
    "training": {"steps": 12, "global_batch_size": 50},
    "checkpoint": {"every_steps": 5},
}


def digits_spec(**changes: Any) -> TrainSpec:
    """A small run on digits; `changes` are whole tables."""
    return validate(TrainSpec, {**DIGITS, **changes}, name="spec")


def train_rank(rank: int, world_size: int, spec: TrainSpec, folder: str, attempt: int = 1) -> dict[str, Any]:
    """Train `spec` on this rank; returns outcome, records and committed weights by name."""
    sink = Buffer()
    outcome = run(Attempt(attempt, spec, folder), rank=rank, sink=sink)
    return {"outcome": outcome, "records": sink.drain()}


def weights(folder: Path) -> dict[str, Any]:
    """The newest checkpoint's weights."""
    from eagleray.packaging import CheckpointStore

    newest = CheckpointStore(str(folder / "checkpoints")).newest(lambda _: None)
    assert newest is not None
    return newest.tensors("weights")
