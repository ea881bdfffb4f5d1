"""The runs that are disturbed: the demo's GPT, as large that a step takes about 50 ms, and a float64 MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from place import ROOT

if TYPE_CHECKING:
    from eagleray.specs import TrainSpec

ENDLESS = 10_000_000
EVERY_STEPS = 10
"""Steps from one commit to the next."""
BATCH = {1: 16, 2: 24, 3: 24, 4: 24}
"""Global batch by world size: of about 50 ms a step on two cores."""


def gpt(
    workers: int,
    minimum: int = 1,
    *,
    batch: int | None = None,
    steps: int = ENDLESS,
    more: Sequence[str] = (),
) -> TrainSpec:
    """The demo's GPT, without evaluations, for so many workers; `more` as for --set."""
    from eagleray.specs import TrainSpec, load

    spec = load(
        TrainSpec,
        ROOT / "examples/train/gpt.toml",
        [
            f"training.steps={steps}",
            f"training.global_batch_size={batch or BATCH[workers]}",
            f"training.evaluate_every_steps={ENDLESS}",
            f"checkpoint.every_steps={EVERY_STEPS}",
            f"scaling.num_workers={workers}",
            f"scaling.min_workers={minimum}",
            *more,
        ],
    )
    return spec.model_copy(update={"completion": None})


def mlp(workers: int, *, steps: int = ENDLESS, minimum: int = 1, every_steps: int = EVERY_STEPS) -> TrainSpec:
    """A small perceptron on digits, float64, nothing compressed: any order of sums gives the same."""
    from eagleray.specs import TrainSpec, validate

    table: dict[str, Any] = {
        "kind": "train",
        "name": "mlp",
        "seed": 3,
        "data": {"kind": "digits", "normalize": "standard"},
        "model": {"kind": "mlp", "hidden": [128, 128]},
        "loss": {"kind": "cross_entropy"},
        "optimizer": {"kind": "adamw", "lr": 1e-3},
        "compression": {"kind": "none"},
        "training": {
            "steps": steps,
            "global_batch_size": 256,
            "precision": "float64",
            "evaluate_every_steps": ENDLESS,
        },
        "checkpoint": {"every_steps": every_steps},
        "scaling": {
            "num_workers": workers,
            "min_workers": minimum,
            "gpus_per_worker": 1,
            "label_selector": {"eagleray.io/pool": "train"},
        },
    }
    return validate(TrainSpec, table, name="mlp")


def has_setting(name: str) -> bool:
    """Whether this checkout's specs know `scaling.<name>`."""
    from eagleray.specs.train import ScalingSpec

    return name in ScalingSpec.model_fields
