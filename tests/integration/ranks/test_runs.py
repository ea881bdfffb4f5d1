"""Runs on one to four ranks without Ray: exactness across world sizes, resume, and ways to fail."""

import dataclasses

import pytest
import torch

from eagleray.errors import TrainingError
from integration.ranks.runs import digits_spec, train_rank, weights
from support.worlds import run_world

SLOW = pytest.mark.slow
FLOAT64 = {"steps": 12, "global_batch_size": 50, "precision": "float64"}


def train(tmp_path, spec, world_size, name="run", attempt=1):
    folder = tmp_path / name
    results = run_world(world_size, train_rank, spec, str(folder), attempt)
    return folder, results


@pytest.mark.parametrize(
    ("changes", "world_sizes"),
    [
        ({}, (2, 3, 4)),
        pytest.param(
            {"model": {"kind": "cnn", "channels": [4], "hidden": 8, "norm": "layer"}}, (2, 3, 4), marks=SLOW
        ),
        pytest.param(
            {"optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "l1": 1e-4}}, (2, 3, 4), marks=SLOW
        ),
    ],
    ids=["mlp-adamw", "cnn-layer-norm", "sgd-l1"],
)
def test_world_sizes_give_the_same_weights_in_float64(tmp_path, changes, world_sizes):
    spec = digits_spec(training=FLOAT64, **changes)
    alone, _ = train(tmp_path, spec, 1, "world-1")
    expected = weights(alone)
    for world_size in world_sizes:
        folder, _ = train(tmp_path, spec, world_size, f"world-{world_size}")
        for name, tensor in weights(folder).items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-9)


def test_micro_batches_and_a_batch_that_the_ranks_cannot_share_evenly_change_nothing(tmp_path):
    whole = digits_spec(training=FLOAT64)
    cut = digits_spec(training={**FLOAT64, "accumulate": 3})
    expected = weights(train(tmp_path, whole, 1, "whole")[0])
    found = weights(train(tmp_path, cut, 3, "cut")[0])
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-9)


def test_each_evaluation_has_its_checkpoint(tmp_path):
    checkpoint = {"every_steps": 50, "at_evaluations": True, "keep": 9}
    training = {"steps": 12, "global_batch_size": 50, "evaluate_every_steps": 5}
    folder, results = train(tmp_path, digits_spec(training=training, checkpoint=checkpoint), 1)
    evaluated = [record["step"] for record in results[0]["records"] if record["kind"] == "evaluation"]
    committed = [record["step"] for record in results[0]["records"] if record["kind"] == "commit"]
    assert evaluated == committed == [5, 10, 12]
    assert len(list((folder / "checkpoints").iterdir())) == 3


@SLOW
def test_fewer_samples_than_ranks_in_the_last_batch_of_an_epoch(tmp_path):
    batch = {"epochs": 2, "global_batch_size": 1436, "precision": "float64"}  # leaves a few samples over
    spec = digits_spec(training=batch)
    expected = weights(train(tmp_path, spec, 1, "world-1")[0])
    for name, tensor in weights(train(tmp_path, spec, 4, "world-4")[0]).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("compression", "world_size"),
    [
        ("none", 3),
        ("bf16", 2),
        pytest.param("none", 2, marks=SLOW),
        pytest.param("fp16", 3, marks=SLOW),
    ],
)
def test_a_resumed_run_is_bit_equal_at_the_same_size(tmp_path, compression, world_size):
    changes = {
        "compression": {"kind": compression},
        "model": {"kind": "mlp", "hidden": [64, 64], "dropout": 0.2, "norm": "batch"},
    }
    through = digits_spec(**changes)
    # Cut at a commit. In the first step of the resumed process DDP has not cut its buckets anew yet.
    cut = through.model_copy(update={"training": through.training.model_copy(update={"steps": 5})})
    _, undisturbed = train(tmp_path, through, world_size, "through")
    train(tmp_path, cut, world_size, "cut", attempt=1)
    _, resumed = train(tmp_path, through, world_size, "cut", attempt=2)
    assert resumed[0]["outcome"]["progress"] == undisturbed[0]["outcome"]["progress"]
    assert resumed[0]["outcome"]["weights_digest"] == undisturbed[0]["outcome"]["weights_digest"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path):
    spec = digits_spec()
    folder, first = train(tmp_path, spec, 1)
    newest = max((folder / "checkpoints").iterdir())
    file = newest / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    _, again = train(tmp_path, spec, 1, attempt=2)
    notes = [record["text"] for record in again[0]["records"] if record["kind"] == "note"]
    assert any("step 12" in note and "using step 10" in note for note in notes), notes
    assert again[0]["outcome"]["weights_digest"] == first[0]["outcome"]["weights_digest"]


def test_a_loss_that_is_not_finite_stops_all_ranks_with_step_and_parameter(tmp_path):
    spec = digits_spec(optimizer={"kind": "sgd", "lr": 1e30})
    with pytest.raises(AssertionError) as caught:
        train(tmp_path, spec, 2)
    text = str(caught.value)
    assert text.count(TrainingError.__name__) >= 2
    assert all(words in text for words in ("rank 0", "rank 1", "gradient of"))


@SLOW
def test_other_data_than_the_checkpoints_is_refused(tmp_path):
    train(tmp_path, digits_spec(), 1)
    other = digits_spec(data={"kind": "digits", "normalize": "none", "split_seed": 5})
    with pytest.raises(AssertionError, match="dataset with digest"):
        train(tmp_path, other, 1, attempt=2)


def test_a_run_learns_reports_and_stops_early(tmp_path):
    spec = digits_spec(
        training={
            "epochs": 30,
            "global_batch_size": 64,
            "early_stopping": {"patience": 2, "min_delta": 0.05},
        }
    )
    _, results = train(tmp_path, spec, 2)
    outcome, records = results[0]["outcome"], results[0]["records"]
    assert outcome["test"]["accuracy"] > 0.9
    assert outcome["progress"]["is_stopped_early"]
    assert outcome["progress"]["step"] < outcome["total_steps"]
    steps = [record for record in records if record["kind"] == "step"]
    assert steps[0]["step"] == 1
    assert steps[-1]["loss"] < steps[0]["loss"] / 2
    assert all(record["sent_bytes"] > 0 for record in steps)


def test_a_finished_run_that_is_resumed_stays_as_it_is(tmp_path):
    spec = digits_spec()
    _, first = train(tmp_path, spec, 1)
    _, again = train(tmp_path, spec, 1, attempt=2)
    assert again[0]["outcome"] == first[0]["outcome"]


def test_progress_goes_through_json():
    from eagleray.training.progress import Progress

    progress = Progress(step=3, consumed=150, epoch=1, best=0.25, stale_evaluations=1)
    assert Progress.from_json(progress.to_json()) == dataclasses.replace(progress)
