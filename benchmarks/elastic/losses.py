"""Rows of what goes wrong on one machine: a worker, its node, a hang, the GCS."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import workloads
from asked import Asked
from kit.results import NotAvailable, RowFailed
from messages import Teller
from passages import Passage, passage
from resizes import tell_of_samples, told
from trial import GROW_LIMIT_S, SETTLED_STEPS, NewNodes, Trial, connect, victims

WORLD = 3
"""Two are left after a loss, so that they have to form a group."""
WORKER = "ray::WorkerActor"
WARM_CPU_S, IDLE_CPU_S = 1.5, 0.1
"""Of a spare: it has imported torch, and in 1.5 s it did hardly anything."""


def worker(tell: Teller, reps: int) -> None:
    """SIGKILL for a worker; fewer go on, and another is fetched."""
    connect()
    tell.note("starting the run")
    trial = Trial(workloads.gpt(WORLD))
    for number, rank in enumerate(victims(WORLD, reps, seed=1)):
        tell_loss(tell, *trial.kill(rank), f"{number + 1}/{reps}: rank {rank} killed")
        go_on(trial, is_last=number + 1 == reps)
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
        go_on(trial, is_last=number + 1 == reps)
    tell_of_samples(tell, trial)
    trial.close()


def node(tell: Teller, reps: int) -> None:
    """SIGKILL for all processes of a node; the run grows onto an idle one while another is started."""
    connect()
    from place import CLUSTER

    from eagleray.cluster import processes, state

    cluster = state.find(CLUSTER)
    tell.note("starting the run and a node beside it")
    trial = Trial(workloads.gpt(WORLD))
    idle = NewNodes(1)
    for number, rank in enumerate(victims(WORLD, reps, seed=3)):
        idle.leave_to_others()
        tell_loss(tell, *trial.kill_node(rank), f"{number + 1}/{reps}: node of rank {rank} killed")
        if number + 1 < reps:  # the next is asked for when the run has taken the idle one
            processes.wait_until(lambda: len(named(cluster, WORKER)) >= WORLD, timeout_s=GROW_LIMIT_S)
            idle = NewNodes(1)
        go_on(trial, is_last=number + 1 == reps)
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
            go_on(trial, is_last=number + 1 == reps)
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
            load.await_answers(5)
            before, failed, step = trial.number, len(load.failed), trial.recorder.step
            [killed] = named(cluster, "gcs_server")
            at = time.time()
            processes.send(killed, signal.SIGKILL)
            trial.recorder.until(
                lambda killed=killed: not killed.is_alive and named(cluster, "gcs_server") != [], "GCS", 60
            )
            back_s = time.time() - at
            load.await_answers(10)
            trial.recorder.until(lambda step=step: trial.recorder.step > step + 20, "20 steps more", 60)
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


def go_on(trial: Trial, *, is_last: bool) -> None:
    """Wait until it is as large as before; after the last loss only for steps and a commit after it."""
    if is_last:
        step = trial.recorder.step + SETTLED_STEPS
        trial.recorder.until(lambda: trial.recorder.step >= step, f"step {step}", GROW_LIMIT_S)
    else:
        trial.settle(WORLD)


def await_spare(trial: Trial) -> None:
    """Wait until a worker beside the formation has nothing more to do: it is warm."""
    import psutil
    from place import CLUSTER

    from eagleray.cluster import processes, state

    cluster = state.find(CLUSTER)

    def busy_s() -> float | None:
        """CPU seconds of the spare so far; None while there is none."""
        formed = {one.pid for one in trial.workers}
        spares = [one.pid for one in named(cluster, WORKER) if one.pid not in formed]
        try:
            return sum(psutil.Process(pid).cpu_times()[0] for pid in spares) if spares else None
        except psutil.NoSuchProcess:
            return None

    seen: list[float | None] = [None]

    def is_warm() -> bool:
        seen.append(busy_s())
        before, now = seen[-2:]
        return before is not None and now is not None and now > WARM_CPU_S and now - before < IDLE_CPU_S

    if not processes.wait_until(is_warm, timeout_s=GROW_LIMIT_S, interval_s=1.5):
        raise RowFailed(f"no spare is warm: {seen[-3:]} CPU seconds; {trial.recorder.describe()}")


def named(cluster: Any, command: str) -> list[Any]:
    """The cluster's processes with that in their command lines."""
    from eagleray.cluster import processes

    return [one for one in processes.belonging(cluster.marker) if command in command_line(one.pid)]


def command_line(pid: int) -> str:
    """Of a process; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""
