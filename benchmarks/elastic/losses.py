"""Rows of what goes wrong on one machine: a worker, its node, a hang, the GCS."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import workloads
from asked import Asked
from messages import NotAvailable, RowFailed, Teller
from passages import Passage, passage
from resizes import tell_of_samples, told
from trial import Trial, connect, victims

WORLD = 3
"""Two are left after a loss, so that they have to form a group."""


def worker(tell: Teller, reps: int) -> None:
    """SIGKILL for a worker; fewer go on, and another is fetched."""
    connect()
    tell.note("starting the run")
    trial = Trial(workloads.gpt(WORLD))
    for number, rank in enumerate(victims(WORLD, reps, seed=1)):
        tell_loss(tell, *trial.kill(rank), f"{number + 1}/{reps}: rank {rank} killed")
        trial.settle(WORLD)
    tell_of_samples(tell, trial)
    trial.close()


def spare(tell: Teller, reps: int) -> None:
    """The same with a warmed spare: the next formation is as large as the one before."""
    if not workloads.has_setting("spares"):
        raise NotAvailable("scaling.spares is not in this checkout")
    connect()
    tell.note("starting the run")
    trial = Trial(workloads.gpt(WORLD, more=["scaling.spares=1"]))
    for number, rank in enumerate(victims(WORLD, reps, seed=2)):
        await_spare(trial)
        at, gone = trial.kill(rank)
        if len(gone.change.workers) != WORLD:
            raise RowFailed(f"{len(gone.change.workers)} workers went on, not {WORLD}: there was no spare")
        tell_loss(tell, at, gone, f"{number + 1}/{reps}: rank {rank} killed")
        trial.settle(WORLD)
    tell_of_samples(tell, trial)
    trial.close()


def node(tell: Teller, reps: int) -> None:
    """SIGKILL for all processes of a node; the node autoscaler starts another one."""
    connect()
    tell.note("starting the run")
    trial = Trial(workloads.gpt(WORLD))
    for number, rank in enumerate(victims(WORLD, reps, seed=3)):
        tell_loss(tell, *trial.kill_node(rank), f"{number + 1}/{reps}: node of rank {rank} killed")
        trial.settle(WORLD)
    tell_of_samples(tell, trial)
    trial.close()


def hang(tell: Teller, reps: int) -> None:
    """SIGSTOP for a worker under the profile `fast`; the driver finds it, ends it, and says who it was."""
    connect()
    from eagleray.cluster import profiles, recovery_ray260

    recovery_ray260.publish(profiles.named("fast"))
    try:
        tell.note("starting the run")
        trial = Trial(workloads.gpt(WORLD))
        for number, rank in enumerate(victims(WORLD, reps, seed=4)):
            at, gone = trial.stop(rank)
            if list(gone.change.lost) != [rank]:
                raise RowFailed(f"rank {rank} was stopped, and {sorted(gone.change.lost)} given up")
            said = gone.change.lost[rank][1]
            tell_loss(tell, at, gone, f"{number + 1}/{reps}: rank {rank} stopped ({said})", said=said)
            trial.settle(WORLD)
        tell_of_samples(tell, trial)
        trial.close()
    finally:
        recovery_ray260.withdraw()


def gcs(tell: Teller, reps: int) -> None:
    """SIGKILL for the GCS while a run trains and a model is asked; the supervisor starts it again."""
    connect()
    from place import CLUSTER

    from eagleray.cluster import processes, state
    from eagleray.cluster.processes import signal

    cluster = state.find(CLUSTER)
    tell.note("starting the run and a service")
    trial = Trial(workloads.gpt(2))
    with Asked(cluster) as load:
        load.ask_always()
        for number in range(reps):
            load.await_answers(10)
            before, failed, step = trial.number, len(load.failed), trial.recorder.step
            killed = named(cluster, "gcs_server")
            at = time.time()
            processes.send(killed, signal.SIGKILL)
            trial.recorder.until(
                lambda killed=killed: not killed.is_alive and is_there(cluster, "gcs_server"), "GCS", 60
            )
            back_s = time.time() - at
            load.await_answers(20)
            trial.recorder.until(lambda step=step: trial.recorder.step > step + 40, "40 steps more", 60)
            records = trial.recorder.all_records
            passages = [passage(one, records) for one in trial.recorder.changes if one.number > before]
            # Where no other formation followed, every step that was taken stands.
            lost = sum(one.lost for one in passages if one is not None)
            tell.repetition(
                lost=lost, failed=len(load.failed) - failed, formations=len(passages), back_s=back_s
            )
            tell.note(f"{number + 1}/{reps}: back after {back_s:.1f} s; {load.failed[failed:][:2]}")
    tell_of_samples(tell, trial)
    trial.close()


def tell_loss(tell: Teller, at: float, gone: Passage, note: str, **more: Any) -> None:
    """One repetition of a loss that happened at a time."""
    recovery_s = gone.first_at - at
    tell.repetition(recovery_s=recovery_s, found_s=gone.change.time - at, **told(gone), **more)
    tell.note(f"{note}: {recovery_s:.2f} s, {gone.lost} steps redone")


def await_spare(trial: Trial) -> None:
    """Wait until the run has a spare that is ready."""
    membership = getattr(trial, "membership", None)
    if membership is None:
        raise NotAvailable("nothing tells yet whether a spare is warm")


def named(cluster: Any, command: str) -> Any:
    """The cluster's process with that in its command line."""
    from eagleray.cluster import processes

    for process in processes.belonging(cluster.marker):
        try:
            line = Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace")
        except OSError:
            continue
        if command in line.replace("\0", " "):
            return process
    raise RowFailed(f"no process {command} in the cluster")


def is_there(cluster: Any, command: str) -> bool:
    """Whether the cluster has such a process."""
    try:
        named(cluster, command)
    except RowFailed:
        return False
    return True
