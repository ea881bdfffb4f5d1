"""Rows of exactness: what resizes, a restart, and the ledger's policy must not change or break."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import workloads
from alone import trained
from kit.results import RowFailed
from messages import Teller
from resizes import tell_of_samples
from trial import Trial, connect

NUM_RESIZES = 20
KINDS = ("int8", "topk")
"""Whose residuals a checkpoint keeps for each rank."""
BIT_STEPS = 90


def weights(tell: Teller, reps: int) -> None:
    """A float64 run through 20 planned resizes, against the same steps by one worker that nobody disturbs."""
    connect()
    for number in range(reps):
        tell.note(f"{number + 1}/{reps}: {NUM_RESIZES} resizes")
        trial = Trial(workloads.mlp(3))
        rng, size = random.Random(number), 3
        for _ in range(NUM_RESIZES):
            size = rng.choice([other for other in (1, 2, 3) if other != size])
            trial.resize(size)
            trial.settle(size, steps=12)
        stopped = trial.newest()
        found = stopped.tensors("weights")
        tell_of_samples(tell, trial)
        trial.close()
        tell.note(f"{number + 1}/{reps}: {stopped.step} steps undisturbed")
        expected = undisturbed(workloads.mlp(1, steps=stopped.step, every_steps=stopped.step))
        worst = max(relative(found[name], expected[name]) for name in expected)
        tell.repetition(difference=worst, steps=stopped.step)


def undisturbed(spec: Any) -> dict[str, Any]:
    """The weights that one worker ends with, without Ray."""
    from eagleray.packaging import CheckpointStore

    with trained(spec) as (folder, _):
        found = CheckpointStore(f"{folder}/checkpoints").newest(lambda _: None)
        assert found is not None
        assert found.step == spec.training.steps
        return found.tensors("weights")


def relative(found: Any, expected: Any) -> float:
    """Largest difference of two tensors over the largest number of the second."""
    return float((found - expected).abs().max() / expected.abs().max())


def bits(tell: Teller, reps: int) -> None:
    """Both ranks killed; started again from the last commit, the run must end in the very same weights."""
    connect()
    for number in range(reps):
        kind = KINDS[number % len(KINDS)]
        more = (f"compression.kind='{kind}'", "compression.residuals='per_rank'", f"seed={number}")
        spec = workloads.gpt(2, minimum=2, steps=BIT_STEPS, more=more)
        tell.note(f"{number + 1}/{reps}: {kind}, undisturbed")
        plain = run_to_end(spec, kill_at=None)
        tell.note(f"{number + 1}/{reps}: {kind}, killed")
        killed = run_to_end(spec, kill_at=BIT_STEPS // 2)
        tell.repetition(
            kind=kind, different=sum(bytes_that_differ(killed[name], plain[name]) for name in plain)
        )


def run_to_end(spec: Any, kill_at: int | None) -> dict[str, Any]:
    """The weights at the end of a run, whose ranks are all killed after a step, if one is given."""
    trial = Trial(spec)
    if kill_at is not None:
        trial.recorder.until(lambda: trial.recorder.step >= kill_at, f"step {kill_at}", 120)
        number, pids = trial.number, [worker.pid for worker in trial.workers]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        gone = trial.recorder.passage_after(number, 120, "start of all workers")
        if gone.change.num_before or trial.number <= number:
            raise RowFailed(f"the ranks were not all new: {gone.change}")
    trial.finish(240)
    found = trial.newest()
    if found.step != spec.training.steps:
        raise RowFailed(f"the newest checkpoint is of step {found.step}, not {spec.training.steps}")
    trial.close()
    return found.tensors("weights")


def bytes_that_differ(found: Any, expected: Any) -> int:
    """Bytes of two tensors that are not the same."""
    import torch

    return int((found.contiguous().view(torch.uint8) != expected.contiguous().view(torch.uint8)).sum())


def policy(tell: Teller, reps: int) -> None:
    """Random schedules of claims, nodes and holders in the simulator of the tests; `reps` hundred of them."""
    from unit.capacity.test_simulated import STARTABLE, TOTALS, play, random_step

    began = time.monotonic()
    for hundred in range(reps):
        broken = []
        for seed in range(100 * hundred, 100 * (hundred + 1)):
            rng = random.Random(seed)
            totals = [rng.choice(TOTALS) for _ in range(rng.randint(1, 5))]
            schedule = [random_step(rng) for _ in range(rng.randint(8, 50))]
            try:
                play(totals, schedule, rng.choice([None, STARTABLE])).settle()
            except AssertionError as error:
                broken.append(f"seed {seed}: {str(error)[:200]}")
        tell.repetition(broken=len(broken), schedules=100, said=broken[:3])
        tell.note(
            f"{100 * (hundred + 1)} schedules in {time.monotonic() - began:.0f} s; broken: {broken[:1]}"
        )
