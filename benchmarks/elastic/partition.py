"""A host cut off from the others, in network namespaces: a head that only drives, and hosts that train.

The hosts are cut in turn, as soon as the run has grown over the ones that came back. The run's driver is on
the head, in a process of its own (`partition_driver`), and writes down what it is told.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit.results import NotAvailable, RowFailed
from messages import Teller
from passages import Passage
from recorder import Recorder
from resizes import told

from eagleray.cluster import processes
from eagleray.training.observer import Change, WorkerInfo
from support import hosts
from support.ray_hosts import GCS, RayHosts

NUM_HOSTS = 3
"""That train."""
GUARD = (sys.executable, "-m", "eagleray.cluster.guard", "start", "--")
CUT_LIMIT_S, BACK_LIMIT_S = 60.0, 180.0
_SEGMENT = re.compile(r"segment-(\d+)\.attempt-(\d+)\.json")


def partition(tell: Teller, reps: int) -> None:
    """Cut a host off, rank 0's as often as another's; mend it when it is fenced and given up."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise NotAvailable("network namespaces need root and iproute2")
    tell.note(f"starting {NUM_HOSTS + 1} hosts")
    with hosts.hosts(NUM_HOSTS + 1) as (head, *others):
        cluster = Cluster(head, others)
        cluster.start()
        with cluster.driven() as run:
            run.recorder.settled(NUM_HOSTS, 240, 25)
            healing: list[threading.Thread] = []
            for number in range(reps):
                # So large that two are left; the others may still be on their way back.
                run.recorder.until(
                    lambda: run.recorder.size >= 2 and run.is_trained(25), "formation of two", BACK_LIMIT_S
                )
                rank = 0 if number % 2 == 0 else run.recorder.size - 1
                tell.note(f"{number + 1}/{reps}: cutting the host of rank {rank} of {run.recorder.size}")
                healing.append(cut(tell, cluster, run, rank))
            for thread in healing:
                thread.join(BACK_LIMIT_S)


def cut(tell: Teller, cluster: Cluster, run: Driven, rank: int) -> threading.Thread:
    """One cut; returns once the rest trains. A thread mends and watches the host, and tells of it all."""
    change = run.recorder.changes[-1]
    address = change.workers[rank].node_ip
    host = next(one for one in cluster.others if one.address == address)
    at = time.time()
    host.cut()
    fencing: list[float] = []
    watching = threading.Thread(target=await_fence, args=(host, at, fencing), daemon=True)
    watching.start()
    gone = run.recorder.passage_after(change.number, CUT_LIMIT_S, f"way on without {host.hostname}")
    watching.join()
    thread = threading.Thread(target=heal, args=(tell, run, host, at, gone, fencing[0]), daemon=True)
    thread.start()
    return thread


def await_fence(host: hosts.Host, at: float, found: list[float]) -> None:
    """Add to `found` how long after the cut the host's own guard had ended all but itself."""
    is_fenced = processes.wait_until(lambda: len(host.processes()) <= 1, timeout_s=CUT_LIMIT_S)
    found.append(time.time() - at if is_fenced else CUT_LIMIT_S)


def heal(tell: Teller, run: Driven, host: hosts.Host, at: float, gone: Passage, fenced_s: float) -> None:
    """Wait until a host that was cut is given up, mend it, and tell when it is back."""
    values: dict[str, Any] = {
        "recovery_s": gone.first_at - at,
        "found_s": gone.change.time - at,
        "fenced_s": fenced_s,
        **told(gone),
    }
    processes.wait_until(lambda: host.address not in run.alive(), timeout_s=CUT_LIMIT_S)
    host.mend()
    mended = time.time()
    if processes.wait_until(lambda: host.address in run.alive(), timeout_s=BACK_LIMIT_S):
        values["back_s"] = time.time() - mended
    else:
        tell.failure(f"{host.hostname} was not back {BACK_LIMIT_S:.0f} s after its cable was mended")
    values["stale_commits"] = run.stale_commits(gone)
    tell.repetition(**values)


class Cluster(RayHosts):
    """A head that trains nothing, and hosts with a guard each."""

    def __init__(self, head: hosts.Host, others: Sequence[hosts.Host]):
        super().__init__(head, others[0])
        self.others = list(others)

    def env(self, host: hosts.Host) -> dict[str, str]:
        """As an administrator's shell, with this checkout."""
        return {**super().env(host), "PYTHONPATH": os.environ["PYTHONPATH"], "GLOO_SOCKET_IFNAME": "eth0"}

    def start(self) -> None:
        """Start Ray on the head, then on all others at once."""
        dashboard = (f"--dashboard-host={self.head.address}", "--dashboard-port=8265")
        self._start(self.head, self._ray_start(self.head, "--head", f"--port={GCS}", *dashboard))
        join = f"--address={self.head.address}:{GCS}"
        starts = [
            threading.Thread(target=self._start, args=(host, [*GUARD, *self._ray_start(host, join)]))
            for host in self.others
        ]
        for thread in starts:
            thread.start()
        for thread in starts:
            thread.join()

    def _ray_start(self, host: hosts.Host, *arguments: str) -> list[str]:
        if host is not self.head:
            return super()._ray_start(host, *arguments)
        pool = ("--labels=eagleray.io/pool=train", "--labels=eagleray.io/pool=head")
        return [pool[1] if one == pool[0] else one for one in super()._ray_start(host, *arguments)]

    @contextmanager
    def driven(self) -> Iterator[Driven]:
        """A run whose driver is on the head, trained to no end."""
        told_to = self.shared / "told.jsonl"
        told_to.touch()
        main = Path(__file__).with_name("partition_driver.py")
        command = self.head.command(sys.executable, str(main), str(told_to), str(NUM_HOSTS))
        env = {**self.env(self.head), "RAY_ADDRESS": f"{self.head.address}:{GCS}"}
        log = Path(os.environ["EAGLERAY_HOME"]) / "partition-driver.log"
        with log.open("wb") as output:
            driver = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
        run = Driven(told_to, self.shared / "storage" / "runs", driver)
        try:
            yield run
        except RowFailed as error:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise RowFailed(f"{error}\nthe driver's log ends with:\n{tail}") from error
        finally:
            run.is_over.set()
            driver.kill()
            driver.wait(10)


class Driven:
    """What the driver on the head has written down, read as it comes."""

    def __init__(self, path: Path, runs: Path, driver: subprocess.Popen[bytes]):
        self.recorder = Recorder()
        self.is_over = threading.Event()
        self._path, self._runs, self._driver = path, runs, driver
        self._alive: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def alive(self) -> list[str]:
        """Addresses of the nodes that the cluster counts as alive."""
        return self._alive

    def is_trained(self, steps: int) -> bool:
        """Whether the present formation has taken so many steps."""
        change, records = self.recorder.changes[-1], self.recorder.all_records
        begun = [
            one["step"] for one in records if one["kind"] == "phase" and one.get("attempt") == change.number
        ]
        return bool(begun) and self.recorder.step >= begun[0] + steps

    def stale_commits(self, gone: Passage) -> int:
        """Segments of the journal that an older formation wrote after the next one had begun to train."""
        found = 0
        for path in self._runs.glob("*/journal/segment-*.json"):
            match = _SEGMENT.fullmatch(path.name)
            is_older = match is not None and int(match[2]) < gone.change.number
            found += is_older and path.stat().st_mtime > gone.first_at
        return found

    def _read(self) -> None:
        with self._path.open() as file:
            part = ""
            while not self.is_over.is_set():
                part += file.readline()
                if not part.endswith("\n"):
                    if self._driver.poll() is not None:
                        self.recorder.ended(f"its driver ended with exit code {self._driver.returncode}")
                        return
                    time.sleep(0.02)
                    continue
                self._take(json.loads(part))
                part = ""

    def _take(self, message: dict[str, Any]) -> None:
        if "change" in message:
            values = message["change"]
            workers = [WorkerInfo(**one) for one in values["workers"]]
            lost = {int(rank): (WorkerInfo(**info), why) for rank, (info, why) in values["lost"].items()}
            self.recorder.changed(Change(**{**values, "workers": workers, "lost": lost}))
        elif "records" in message:
            self.recorder.records(message["records"])
        elif "failed" in message:
            self.recorder.failed({-1: Exception(message["failed"])}, True)
        elif "alive" in message:
            self._alive = message["alive"]
