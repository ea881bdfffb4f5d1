"""Rows of planned changes: how long a run stands still, how much slower it is while a worker starts."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import workloads
from kit.results import NotAvailable, RowFailed
from messages import Teller
from passages import Passage, step_seconds
from trial import Trial, connect

STEADY_S = 2.0
"""Before a growth: what the steps during it are compared with."""


def told(*passages: Passage) -> dict[str, Any]:
    """What every row tells of a change of size: of all its passages together, where there were several."""
    return {
        "to": len(passages[-1].change.workers),
        "passages": len(passages),
        "pause_s": sum(one.pause_s for one in passages),
        "lost": sum(one.lost for one in passages),
        "ordered_s": sum(one.change.time - one.last_at for one in passages),
    }


def resize(
    tell: Teller, reps: int, *, large: int, small: int, on_change: str = "", own_core: bool = False
) -> None:
    """From `large` to `small` workers and back; a repetition is both, and tells of each.

    With `own_core` rank 0's node has a core for itself, and how much slower its steps are while another
    worker starts is told, too.
    """
    more = []
    if on_change:
        if not workloads.has_setting("on_change"):
            raise NotAvailable("scaling.on_change is not in this checkout")
        more = [f"scaling.on_change='{on_change}'"]
    connect()
    tell.note("starting the run")
    trial = Trial(workloads.gpt(large, more=more))
    began = time.time()
    with pinned(trial) if own_core else nullcontext():
        for number in range(reps):
            down = trial.resize(small)
            tell.repetition(**told(*down))
            trial.settle(small)
            if own_core:
                time.sleep(STEADY_S)
            asked = time.time()
            up = trial.resize(large)
            grown = told(*up)
            tell.repetition(**grown, **(slower(trial, asked, up[0]) if own_core else {}))
            tell.note(
                f"{number + 1}/{reps}: {told(*down)['pause_s']:.2f} s down, {grown['pause_s']:.2f} s up"
            )
            trial.settle(large)
    tell.facts(step_s=step_seconds(trial.recorder.all_records, began, time.time()))
    tell_of_samples(tell, trial)
    trial.close()


def slower(trial: Trial, asked: float, up: Passage) -> dict[str, Any]:
    """By how much a step took longer from the wish for another worker until the run stopped for it."""
    until = getattr(up.change, "left_at", None) or up.last_at
    records = trial.recorder.all_records
    steady = step_seconds(records, asked - STEADY_S - 1, asked)
    warming = step_seconds(records, asked, until)
    if steady is None or warming is None:
        raise RowFailed(f"no report of steps between {asked:.1f} and {until:.1f}")
    return {
        "slower": warming / steady - 1,
        "steady_s": steady,
        "warming_s": warming,
        "started_s": until - asked,
    }


def tell_of_samples(tell: Teller, trial: Trial) -> None:
    """What the sample journal says of the run: a fact of the row, and a failure where it is not proven."""
    found = trial.verify()
    tell.facts(is_proven=found.is_proven, steps=found.step, formations=len(found.formations))
    if not found.is_proven:
        tell.failure(f"samples were lost or repeated: {[finding.text for finding in found.findings][:5]}")


@contextmanager
def pinned(trial: Trial) -> Any:
    """Rank 0's node has core 0 for itself; everything else of the cluster, and this process, has core 1."""
    from place import CLUSTER
    from trial import node_process

    from eagleray.cluster import processes, state

    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise NotAvailable("one core only: the newcomer cannot have its own")
    marker = state.find(CLUSTER).marker
    mine = [processes.this_process()]
    try:
        for process in [*processes.belonging(marker), *mine]:
            pin(process.pid, {cores[1]})
        import psutil

        leader = psutil.Process(node_process(trial.workers[0].node_id).pid)
        for process in [leader, *leader.children(recursive=True)]:
            pin(process.pid, {cores[0]})
        yield
    finally:
        for process in [*processes.belonging(marker), *mine]:
            pin(process.pid, set(cores))


def pin(pid: int, cores: set[int]) -> None:
    """All threads of a process; those that it starts later inherit it. Nothing where it has ended."""
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)
    except OSError:
        return
