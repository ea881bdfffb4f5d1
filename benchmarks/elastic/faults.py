"""Rows of many faults (`--full`): seeded resizes and kills, and a storm of all kinds by the clock."""

from __future__ import annotations

import random
import time
from typing import Any

import workloads
from kit.results import RowFailed
from losses import named
from messages import Teller
from passages import blocked_seconds, paused_seconds
from trial import CHANGE_LIMIT_S, Trial, connect

NUM_SCHEDULES, EVENTS_A_SCHEDULE = 5, 24
STORM_S, EVERY_S = 600.0, 20.0
STORM = ("worker", "node", "hang", "gcs", "resize")


def schedules(tell: Teller, reps: int) -> None:
    """Runs of 1 to 4 workers through random resizes and kills, by seed; `reps` of them, 24 events each."""
    connect()
    for seed in range(reps):
        rng = random.Random(seed)
        trial = Trial(workloads.gpt(4))
        kills = resizes = 0
        for number in range(EVENTS_A_SCHEDULE):
            before = trial.number
            size = trial.recorder.size
            if size > 1 and rng.random() < 0.5:
                trial.kill(rng.randrange(size))
                kills += 1
            else:
                wanted = rng.choice([other for other in (1, 2, 3, 4) if other != size])
                trial.size.want(wanted)
                resizes += 1
            trial.recorder.passage_after(before, CHANGE_LIMIT_S + 60, f"change of event {number}")
            time.sleep(rng.random() * 1.5)  # in a step, a commit, or while ranks form
            tell.note(f"seed {seed}: event {number + 1}/{EVENTS_A_SCHEDULE}, step {trial.recorder.step}")
        tell.repetition(
            seed=seed,
            kills=kills,
            resizes=resizes,
            wrong_samples=wrong_samples(trial),
            steps=trial.newest().step,
        )
        trial.close()


def storm(tell: Teller, reps: int) -> None:
    """A fault every 20 s for ten minutes, of each kind in turn; the run's goodput over that time."""
    connect()
    from place import CLUSTER

    from eagleray.cluster import processes, profiles, recovery_ray260, state
    from eagleray.cluster.processes import signal

    cluster = state.find(CLUSTER)
    recovery_ray260.publish(profiles.named("fast"))
    try:
        for repetition in range(reps):
            rng = random.Random(repetition)
            trial = Trial(workloads.gpt(3))
            began = time.time()
            faults = []
            while (now := time.time()) < began + STORM_S:
                fault = STORM[len(faults) % len(STORM)]
                faults.append(fault)
                tell.note(f"{now - began:.0f} s: {fault}, {trial.recorder.describe()}")
                match fault:
                    case "worker":
                        trial.kill(rng.randrange(trial.recorder.size))
                    case "node":
                        trial.kill_node(rng.randrange(trial.recorder.size))
                    case "hang":
                        trial.stop(rng.randrange(trial.recorder.size))
                    case "gcs":
                        processes.send(named(cluster, "gcs_server")[0], signal.SIGKILL)
                    case "resize":
                        trial.size.want(2 if trial.recorder.size > 2 else 3)
                time.sleep(max(0.0, began + EVERY_S * len(faults) - time.time()))
                if fault == "resize":
                    trial.size.want(3)
            if not named(cluster, "gcs_server"):
                raise RowFailed("the GCS did not come back")
            tell.repetition(
                faults=len(faults),
                goodput=goodput(trial, began, began + STORM_S),
                wrong_samples=wrong_samples(trial),
                steps=trial.newest().step,
            )
            trial.close()
    finally:
        recovery_ray260.withdraw()


def goodput(trial: Trial, since: float, until: float) -> float:
    """Share of a span in which steps were taken that count: less the pauses, and what commits held up."""
    changes, records = trial.recorder.changes, trial.recorder.all_records
    lost_s = paused_seconds(changes[1:], records, since, until) + blocked_seconds(records, since, until)
    return 1 - lost_s / (until - since)


def wrong_samples(trial: Trial) -> int:
    """Findings of `verify-run`: steps or samples that were not taken exactly once."""
    found: Any = trial.verify()
    return len(found.findings)
