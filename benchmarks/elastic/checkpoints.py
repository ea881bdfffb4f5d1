"""The row of checkpoints: for how long a step is held up by one, against one that is waited for."""

from __future__ import annotations

import statistics
from typing import Any

import workloads
from alone import trained
from messages import Teller

WAITED_FOR = "checkpoint.at_evaluations=true"
"""So a search has it: training goes on when the checkpoint lies on the disk."""


def checkpoint(tell: Teller, reps: int) -> None:
    """One worker commits every 10 steps; each commit against the median of those that are waited for."""
    steps = workloads.EVERY_STEPS * (reps + 2)
    tell.note("commits that are waited for")
    whole_s = statistics.median(blocked(workloads.gpt(1, steps=steps, more=(WAITED_FOR,))))
    tell.facts(waited_for_s=whole_s)
    tell.note("commits in the background")
    for blocked_s in blocked(workloads.gpt(1, steps=steps)):
        tell.repetition(share=blocked_s / whole_s, blocked_s=blocked_s)


def blocked(spec: Any) -> list[float]:
    """Seconds for which each commit of a run held it up.

    Not the first one, which makes its memory, nor the last one, which every run waits for.
    """
    with trained(spec) as (_, worker):
        return [record["blocked_s"] for record in worker.records if record["kind"] == "commit"][1:-1]
