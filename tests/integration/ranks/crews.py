"""Runs of a crew (`support.crew`) that must come out the same whatever happens to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from eagleray.specs import TrainSpec, validate
from eagleray.workflows.verify import Verification, verify
from integration.ranks.runs import DIGITS
from support.crew import Crew


def exact(steps: int = 240, **changes: Any) -> TrainSpec:
    """Long enough to be interrupted; float64 and uncompressed, so that any order of sums gives the same."""
    table = {
        **DIGITS,
        "training": {"steps": steps, "global_batch_size": 50, "precision": "float64"},
        "compression": {"kind": "none"},
        **changes,
    }
    return validate(TrainSpec, table, name="spec")


def finish(run: Crew, spec: TrainSpec, folder: Path) -> Verification:
    """Train to the end; what the journal says of it, which must be that each sample counted once.

    `folder` is that of the run "r" in EAGLERAY_STORAGE.
    """
    outcome = run.outcome()
    assert outcome["progress"]["step"] == spec.training.steps
    found = verified(spec, folder)
    assert found.step == spec.training.steps
    return found


def verified(spec: TrainSpec, folder: Path) -> Verification:
    """What the journal of such a run says up to its newest checkpoint: that each sample counted once."""
    (folder / "spec.json").write_text(spec.model_dump_json())
    found = verify("r", lambda text: None)
    assert found.is_proven, found.findings
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """That no weight differs by more than 1e-9 of its size."""
    for name, tensor in expected.items():
        worst = float(((found[name] - tensor).abs() / tensor.abs().clamp(min=1e-6)).max())
        assert worst <= 1e-9, f"{name}: {worst}"
