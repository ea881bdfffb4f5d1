"""A real run on the benchmark's cluster, driven from this process, and what is done to it."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import threading
import time
from typing import Any

import workloads
from passages import Passage
from recorder import Recorder

START_LIMIT_S, CHANGE_LIMIT_S, GROW_LIMIT_S = 300.0, 90.0, 240.0
"""Much more than any goal: what takes longer is no figure but a failure."""
CLOSE_LIMIT_S = 30.0
SETTLED_STEPS = 12


class Trial:
    """One run, from its start until this process lets go of it. Ray is connected (`connect`)."""

    def __init__(self, spec: Any, *, recorder: Recorder | None = None):
        """Start it; returns when it trains with all of its workers. `recorder` hears of it."""
        from eagleray.cluster.processes import Process
        from eagleray.training import trainer_ray260  # noqa: F401  before the workers are waited for
        from eagleray.training.reservation_ray260 import Reservation
        from eagleray.training.trainer import Size, bundle
        from eagleray.workflows.run import Run

        self.spec = spec
        self.run = Run.create(spec)
        self.recorder = recorder or Recorder()
        self.size = Size()
        scaling = spec.scaling
        more = {"spares": scaling.spares} if workloads.has_setting("spares") else {}
        self._reservation = Reservation(
            bundle(spec), scaling.num_workers, scaling.label_selector, scaling.minimum, **more
        )
        self._reservation.wait(lambda _: None)
        self._stopped: list[Process] = []
        self.outcome: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._fit, daemon=True)
        self._thread.start()
        self.settle(scaling.num_workers, START_LIMIT_S)

    def _fit(self) -> None:
        from eagleray.training.trainer import fit

        try:
            self.outcome = fit(
                self.spec,
                self.run.folder.url,
                first_attempt=self.run.next_attempt(),
                reservation=self._reservation,
                observer=self.recorder,
                size=self.size,
            )
            self.recorder.ended("it is finished")
        except BaseException as error:
            self.recorder.ended(f"{type(error).__name__}: {error}")

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    @property
    def number(self) -> int:
        """Of the formation."""
        return self.recorder.changes[-1].number

    @property
    def workers(self) -> Any:
        """Of the formation, by rank."""
        return self.recorder.changes[-1].workers

    def settle(self, size: int, limit_s: float = GROW_LIMIT_S, steps: int = SETTLED_STEPS) -> None:
        """Wait until it trains with so many workers, undisturbed for a while."""
        self.recorder.settled(size, limit_s, steps)

    def finish(self, limit_s: float) -> dict[str, Any]:
        """Wait for the end of a run that has one; its outcome."""
        self.recorder.until(lambda: self.outcome, "end of the run", limit_s)
        assert self.outcome is not None
        return self.outcome

    # What is done to it; each returns the passage to the next formation, or all that there were

    def resize(self, size: int) -> list[Passage]:
        """Ask for another size, and wait until it trains with that; joiners may come one by one."""
        number, found = self.number, []
        self.size.want(size)
        while not found or len(found[-1].change.workers) != size:
            found.append(self.recorder.passage_after(number, GROW_LIMIT_S, f"change to {size} workers"))
            number = found[-1].change.number
        return found

    def kill(self, rank: int) -> tuple[float, Passage]:
        """SIGKILL for a rank; when that was, and the passage that follows."""
        number, worker = self.number, self.workers[rank]
        at = time.time()
        os.kill(worker.pid, signal.SIGKILL)
        return at, self.recorder.passage_after(number, CHANGE_LIMIT_S, f"way on without rank {rank}")

    def stop(self, rank: int) -> tuple[float, Passage]:
        """SIGSTOP for a rank: it hangs; when that was, and the passage that follows."""
        from eagleray.cluster import processes

        number, victim = self.number, processes.of(self.workers[rank].pid)
        self._stopped.append(victim)
        at = time.time()
        os.kill(victim.pid, signal.SIGSTOP)
        return at, self.recorder.passage_after(number, CHANGE_LIMIT_S, f"way on without rank {rank}")

    def kill_node(self, rank: int) -> tuple[float, Passage]:
        """SIGKILL for all that runs on a rank's node, as a loss of power; when, and the passage after."""
        import psutil

        number, leader = self.number, node_process(self.workers[rank].node_id)
        tree = [psutil.Process(leader.pid), *psutil.Process(leader.pid).children(recursive=True)]
        at = time.time()
        for process in tree:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue  # it ended with its parent
        return at, self.recorder.passage_after(number, CHANGE_LIMIT_S, f"way on without rank {rank}")

    # What came of it

    def verify(self) -> Any:
        """What the sample journal says; the run may go on."""
        from eagleray.workflows.verify import verify

        return verify(self.run.run_id, lambda _: None)

    def newest(self) -> Any:
        """The newest checkpoint."""
        from eagleray.packaging import CheckpointStore

        found = CheckpointStore(self.run.folder.child("checkpoints").url).newest(lambda _: None)
        assert found is not None, "no checkpoint yet"
        return found

    def close(self) -> None:
        """End the run, if it has not ended, as Ctrl-C in its driver does, and give its resources back."""
        from eagleray.cluster import processes

        for victim in self._stopped:
            processes.send(victim, signal.SIGKILL)
        if self._thread.is_alive():
            interrupt = ctypes.py_object(KeyboardInterrupt)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident or 0), interrupt)
            self._thread.join(CLOSE_LIMIT_S)
        self._reservation.release()


def connect() -> None:
    """Connect this process to the cluster of its environment, as the driver of a run does."""
    from eagleray.workflows.connecting import connect as connect_driver

    connect_driver()


class NewNodes:
    """Nodes for a worker each, asked for of the node autoscaler, and held until they are wanted."""

    def __init__(self, count: int):
        """Ask; returns at once."""
        from ray.util.placement_group import placement_group

        self._group = placement_group(
            [{"CPU": 1, "GPU": 1}] * count,
            strategy="STRICT_SPREAD",
            bundle_label_selector=[{"eagleray.io/pool": "train"}] * count,
        )

    def leave_to_others(self) -> None:
        """Wait until they are there, and hold them no longer."""
        import ray
        from ray.util.placement_group import remove_placement_group

        ray.get(self._group.ready(), timeout=GROW_LIMIT_S)
        remove_placement_group(self._group)


def node_process(node_id: str) -> Any:
    """The process that leads a node of the local cluster, by Ray's id of the node."""
    from kit.results import RowFailed
    from place import CLUSTER

    from eagleray.cluster import nodes, state
    from eagleray.cluster.job_ray260 import node_name

    name = node_name(node_id)
    for node in nodes.read_all(state.find(CLUSTER).nodes_dir):
        if node.node_id == name and node.process is not None:
            return node.process
    raise RowFailed(f"node {name} ({node_id[:8]}) has no process on disk")


def victims(size: int, count: int, seed: int) -> list[int]:
    """Which rank is lost in each repetition: each as often as the others, in an order by seed."""
    found = [number % size for number in range(count)]
    random.Random(seed).shuffle(found)
    return found
