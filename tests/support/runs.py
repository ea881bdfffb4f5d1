"""A finished run without a cluster: a few plain steps on one core, and the folder that a driver leaves."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from eagleray import data, models
from eagleray.packaging import CheckpointStore
from eagleray.specs import TrainSpec
from eagleray.specs.train import MaskedTokenLoss
from eagleray.training.code import store_code
from eagleray.workflows.run import runs

DIGITS = {
    "kind": "train",
    "name": "digits",
    "seed": 3,
    "data": {"kind": "digits", "normalize": "standard"},
    "model": {"kind": "mlp", "hidden": [32]},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "adam", "lr": 0.01},
    "training": {"steps": 60, "global_batch_size": 128},
}


def finish(
    spec: Mapping[str, Any] | TrainSpec, run_id: str | None = None, *, status: str = "FINISHED"
) -> TrainSpec:
    """Train what `spec` says, plainly, and write the run's folder; returns the spec."""
    spec = spec if isinstance(spec, TrainSpec) else TrainSpec.model_validate(spec)
    folder = runs().child(run_id or f"{spec.name}-20260131-120000-ab12")
    store_code(spec.code, folder)
    folder.write_json("spec.json", spec.model_dump(mode="json"))
    dataset = data.open_dataset(spec.data)
    module, history = _train(spec, dataset)
    steps = spec.training.steps
    assert steps is not None
    progress = {"step": steps}
    CheckpointStore(folder.child("checkpoints").url).commit(
        steps, attempt=1, tensors={"weights": module.state_dict()}, state={"progress": progress}
    )
    frame = io.BytesIO()
    pd.DataFrame(history).to_parquet(frame, index=False)
    folder.write_bytes("history/000001.parquet", frame.getvalue())
    folder.write_json(
        "report.json",
        {
            "status": status,
            "signature": dataset.signature.model_dump(mode="json"),
            "dataset_digest": dataset.digest,
            "progress": progress,
            "metrics": {"loss": history[-1]["loss"]},
        },
    )
    return spec


def _train(spec: TrainSpec, dataset: data.Dataset) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    torch.manual_seed(spec.seed)
    module = models.build(spec.model, dataset.signature)
    loss_of = models.per_sample_loss(spec.loss)
    optimizer = torch.optim.Adam(module.parameters(), spec.optimizer.lr)
    transform = None
    if isinstance(spec.loss, MaskedTokenLoss):
        transform = data.Masking.of(spec.loss.mask_fraction, dataset.signature)
    loader = data.Loader(
        dataset.train, global_batch_size=spec.training.global_batch_size, seed=spec.seed, transform=transform
    )
    history, consumed = [], 0
    for step in range(1, (spec.training.steps or 1) + 1):
        shard = loader.shard(consumed, 0, 1)
        consumed = shard.consumed
        loss = loss_of(module(torch.from_numpy(shard.inputs)), torch.from_numpy(shard.targets)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({"step": float(step), "loss": loss.item(), "validation_loss": np.nan})
    history[-1]["validation_loss"] = history[-1]["loss"]
    return module.eval(), history
