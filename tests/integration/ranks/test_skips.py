"""Gradients that are not finite: all ranks skip the step, nothing is poisoned, and too many end the run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from eagleray.errors import TrainingError
from integration.ranks.runs import digits_spec
from support.worlds import run_world

STEPS = 9


def train_with_bad_steps(
    rank: int, world_size: int, spec: Any, folder: str, bad_steps: tuple[int, ...]
) -> dict[str, Any]:
    """Train; in these steps the input of rank 1 is not a number."""
    from eagleray.training import loop, state
    from eagleray.training.telemetry import Buffer
    from eagleray.training.worker import Attempt, run

    sink, seen = Buffer(), {"step": 0, "residuals": [], "weights": []}
    backward, take_step = loop.backward, loop.take_step

    def poisoned(parts, shard):
        seen["step"] += 1
        if seen["step"] in bad_steps and rank == world_size - 1:
            shard.inputs[0] = math.nan
        return backward(parts, shard)

    def watched(parts, step, skipped):
        skipped = take_step(parts, step, skipped)
        residual = parts.hook.memory.flats.get("residual")
        seen["residuals"].append(residual is None or bool(residual[1].isfinite().all()))
        seen["weights"].append(state.weights_digest(torch.nn.ParameterList(parts.module.parameters())))
        return skipped

    loop.backward, loop.take_step = poisoned, watched
    outcome = run(Attempt(1, spec, folder), rank=rank, sink=sink)
    return {"outcome": outcome, "records": sink.drain(), **seen}


def bad_run(tmp_path, kind: str, bad_steps: tuple[int, ...], **compression: Any) -> list[dict[str, Any]]:
    spec = digits_spec(
        compression={"kind": kind, "dense_below": 0, **compression},
        model={"kind": "mlp", "hidden": [16], "norm": "batch"},
        training={"steps": STEPS, "global_batch_size": 50},
    )
    return run_world(2, train_with_bad_steps, spec, str(tmp_path / "run"), bad_steps)


@pytest.mark.parametrize("kind", ["none", "int8", "topk"])
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(tmp_path, kind):
    bad = (1, 4, 5)
    results = bad_run(tmp_path, kind, bad)
    for result in results:
        assert all(result["residuals"])
        assert result["weights"] == results[0]["weights"]
        changed = [b != a for a, b in zip(result["weights"], result["weights"][1:], strict=False)]
        assert changed == [number not in bad for number in range(2, STEPS + 1)]
    outcome, records = results[0]["outcome"], results[0]["records"]
    assert outcome["progress"]["step"] == STEPS
    assert outcome["progress"]["consumed"] == 50 * STEPS, "a skipped step uses up its samples"
    assert math.isfinite(outcome["test"]["loss"]), "not even BatchNorm remembers it"
    first, last = [record for record in records if record["kind"] == "step"]
    assert "loss" not in first, "there is none of the first step"
    assert math.isfinite(last["loss"])
    assert (first["skipped_steps"], last["skipped_steps"]) == (1, 2)
    assert (first["num_samples"], last["num_samples"]) == (50, 50 * (STEPS - 1))
    notes = [record["text"] for record in records if record["kind"] == "note"]
    assert [note.split(":")[0] for note in notes if "all skip" in note] == [f"step {n}" for n in bad]


def test_too_many_in_a_row_end_the_run_on_all_ranks_with_the_parameters_name(tmp_path):
    with pytest.raises(AssertionError) as caught:
        bad_run(tmp_path, "int8", (2, 4, 5, 6, 7), max_skipped_steps=3)
    text = str(caught.value)
    assert text.count(f"{TrainingError.__name__}: step 6: the gradient of ") == 2
    assert "is not finite on some rank, as in the 2 steps before; lower optimizer.lr" in text
