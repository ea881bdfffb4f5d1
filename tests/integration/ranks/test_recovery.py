"""Runs that are hit harder than once: killed whole and resumed, hit again while they recover, overtaken."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from eagleray.packaging import CheckpointStore
from eagleray.specs import TrainSpec, validate
from eagleray.specs.compression import CompressionSpec
from integration.ranks.crews import assert_same, exact, finish, verified
from integration.ranks.runs import DIGITS, weights
from support.crew import crew

SLOW = pytest.mark.slow


def keeping_each_ranks_own(kind: str) -> TrainSpec:
    """float32, dropout, BatchNorm, and the residuals of a fixed compressor."""
    return validate(
        TrainSpec,
        {
            **DIGITS,
            "model": {"kind": "mlp", "hidden": [64, 64], "dropout": 0.2, "norm": "batch"},
            "training": {"steps": 140, "global_batch_size": 50},
            "compression": CompressionSpec.without_others(
                {
                    "kind": kind,
                    "residuals": "per_rank",
                    "dense_below": 0,
                    "ratio": 0.05,
                    "warmup_steps": 4,
                }
            ),
            "checkpoint": {"every_steps": 10},
        },
        name="spec",
    )


@pytest.mark.parametrize(
    ("kind", "size", "kills"),
    [
        ("topk", 2, 1),
        *(
            pytest.param(kind, size, 3, marks=SLOW)
            for size in (2, 3)
            for kind in (
                *("none", "fp16", "bf16", "int8", "int4", "int8_ring"),
                *("topk", "randomk", "powersgd", "onebit_adam", "fourbit_adam"),
            )
        ),
    ],
)
def test_a_run_killed_at_any_step_and_resumed_at_its_size_is_equal_to_the_last_bit(
    folder, tmp_path_factory, kind, size, kills
):
    spec, rng = keeping_each_ranks_own(kind), random.Random(kind)
    with crew(spec, str(tmp_path_factory.mktemp("through"))) as run:
        run.form(run.start(size))
        expected = run.outcome()
    for attempt in range(1, kills + 1):
        with crew(spec, str(folder), attempt) as run:
            run.form(run.start(size))
            run.await_step(rng.randint(30, 45) * attempt)
            run.lose_all()
    with crew(spec, str(folder), kills + 1) as run:
        run.form(run.start(size))
        found = run.outcome()
        began = [one["step"] for one in run.workers[0].records if one["kind"] == "phase"]
        finish(run, spec, folder)
    assert began[0] > 0, "it went on from a checkpoint"
    assert found["weights_digest"] == expected["weights_digest"]
    assert found["progress"] == expected["progress"]
    assert found["test"] == expected["test"]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=SLOW) for seed in range(1, 9))])
def test_ranks_that_are_lost_while_the_others_recover_cost_no_step_either(undisturbed, folder, seed):
    rng = random.Random(seed)
    with crew(exact(), str(folder)) as run:
        run.form(run.start(3))
        run.await_step(15)
        run.lose(rng.randrange(3), replace=True)
        pause(rng)
        run.lose(rng.randrange(2))  # one that held the state
        pause(rng)
        run.lose(rng.randrange(2), replace=True)
        run.await_step(50)
        run.resize(4)
        pause(rng)
        run.lose(0, rng.randint(1, 3))
        pause(rng)
        run.lose(0, replace=True)
        finish(run, exact(), folder)
    assert_same(weights(folder), undisturbed)


def pause(rng: random.Random) -> None:
    """As long as a formation takes to come about, or less."""
    time.sleep(rng.random() * 0.15)


HELD = """
import math
import time
from pathlib import Path

from torch import nn

from eagleray.packaging.journal import Journal

write = Journal.write


def held(journal, segment):
    if (segment.attempt, segment.step) == (1, 40):
        Path(__file__).with_name("begun").touch()
        time.sleep(600)
    write(journal, segment)


Journal.write = held


def build(signature):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(signature.input_shape), 10))
"""


def test_a_rank_0_that_is_killed_in_the_last_commit_leaves_it_to_the_others(folder):
    (folder / "code").mkdir()
    (folder / "code" / "held.py").write_text(HELD)
    spec = exact(40, model={"kind": "module", "function": "held:build"})
    with crew(spec, str(folder)) as run:
        run.form(run.start(2))
        run.await_(run.workers[0], (folder / "code" / "begun").exists)
        run.lose(0)
        found = finish(run, spec, folder)
    assert found.formations == (1,), "no step was taken by the others"


@SLOW
@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4])
def test_a_kill_of_all_while_they_load_the_checkpoint_changes_nothing(undisturbed, folder, delay_s):
    with crew(exact(), str(folder)) as run:
        run.form(run.start(2))
        run.await_step(30)
        for _ in range(2):
            run.lose_all()
            run.form(run.start(2), num_lost=2)
            time.sleep(delay_s)
        run.lose_all()
        run.form(run.start(3), num_lost=2)
        finish(run, exact(), folder)
    assert_same(weights(folder), undisturbed)


def flip_a_byte(folder: Path, file: str) -> int:
    """In the newest checkpoint; returns its step."""
    newest = CheckpointStore(str(folder / "checkpoints")).newest(lambda _: None)  # one was being written
    assert newest is not None
    path = Path(newest.url.removeprefix("file://")) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return newest.step


@pytest.mark.parametrize(
    "file", ["optimizer.safetensors", *(pytest.param(f, marks=SLOW) for f in ("state.json", "COMMIT"))]
)
def test_a_flipped_byte_costs_one_interval_and_the_log_says_so(undisturbed, folder, file):
    with crew(exact(), str(folder)) as run:
        run.form(run.start(2))
        run.await_step(40)
        run.lose_all()
    step = flip_a_byte(folder, file)
    with crew(exact(), str(folder), 2) as run:
        run.form(run.start(2))
        finish(run, exact(), folder)
        notes = [one["text"] for one in run.workers[0].records if one["kind"] == "note"]
        began = [one["step"] for one in run.workers[0].records if one["kind"] == "phase"]
    assert began == [step - 5]
    (said,) = [note for note in notes if note.startswith(f"checkpoint step {step}: ")]
    assert said.endswith(f"; using step {step - 5}")
    assert_same(weights(folder), undisturbed)


def refused(folder: Path, **changes: Any) -> str:
    """With what words the run's checkpoint is refused by another spec."""
    with crew(exact(20), str(folder)) as run:
        run.form(run.start(1))
        run.outcome()
    before = sorted(path.name for path in (folder / "checkpoints").iterdir())
    with crew(exact(30, **changes), str(folder), 2) as run:
        run.form(run.start(2))
        texts = [run.failure(worker) for worker in run.workers]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before
    assert all("CheckpointError" in text for text in texts), texts
    return texts[0].strip().splitlines()[-1]


def test_another_model_is_refused_with_the_difference(folder):
    said = refused(folder, model={"kind": "mlp", "hidden": [24, 16]})
    assert "checkpoint of step 20 in " in said
    assert "is of another model: " in said
    assert "(16, 64)" in said
    assert "(24, 64)" in said
    assert "training.init_from" in said


@SLOW
def test_other_data_is_refused_with_both_digests(folder):
    said = refused(folder, data={"kind": "digits", "normalize": "none", "split_seed": 5})
    assert "was trained on a dataset with digest" in said


def test_workers_whose_run_was_taken_over_commit_nothing_more(folder):
    spec = exact(1_000_000)
    with crew(spec, str(folder)) as stale, crew(spec, str(folder), 2) as run:
        stale.form(stale.start(2))
        stale.await_step(15)
        run.form(run.start(2))  # by a driver that takes the first one for dead
        assert "TakenOver: checkpoint step" in stale.failure(stale.workers[0])
        stale.await_(stale.workers[1], lambda: stale.workers[1].is_ready)
        committed = verified(spec, folder)
        run.await_step(committed.step + 20)
        run.lose_all()
    found = verified(spec, folder)
    assert found.step > committed.step
    assert found.formations == (1, 2)
