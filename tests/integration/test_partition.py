"""A host that is cut off from its cluster: fenced while it is, back by itself when the network is."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eagleray.cluster import processes
from support import hosts
from support.ray_hosts import GCS, RayHosts

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
GUARD = (sys.executable, "-m", "eagleray.cluster.guard")
# An actor on the other host writes the time, 20 times a second: what a stale worker would go on to do. The
# driver writes what the cluster says of that host and of the actor.
DRIVER = """
import json, os, sys, threading, time
import ray
from ray.exceptions import RayError

address, other, folder = sys.argv[1:]
ray.init(address, log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=1, resources={f"node:{other}": 0.01}, max_restarts=-1)
class Worker:
    def __init__(self):
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self):
        file = os.open(f"{folder}/beats-{os.getpid()}", os.O_WRONLY | os.O_CREAT)
        while True:
            os.pwrite(file, b"%.6f" % time.time(), 0)
            time.sleep(0.05)

    def pid(self):
        return os.getpid()

worker = Worker.remote()
asked = worker.pid.remote()
with open(f"{folder}/seen", "a") as file:
    while True:
        pid = None
        if ray.wait([asked], timeout=0.1)[0]:
            try:
                pid = ray.get(asked)
            except RayError:
                pass
            asked = worker.pid.remote()
        alive = [one["NodeID"] for one in ray.nodes() if one["NodeManagerAddress"] == other and one["Alive"]]
        print(json.dumps([time.time(), alive, pid]), file=file, flush=True)
        time.sleep(0.05)
"""


class Cluster(RayHosts):
    """With a guard on the other host, and the driver on the head."""

    def env(self, host: hosts.Host) -> dict[str, str]:
        return {**super().env(host), "PYTHONPATH": str(ROOT / "platform")}

    def start_other(self) -> None:
        super().start_other(*GUARD, "start", "--")

    @contextmanager
    def watched(self) -> Iterator[None]:
        (self.shared / "seen").touch()
        words = (f"{self.head.address}:{GCS}", self.other.address, str(self.shared))
        driver = subprocess.Popen(
            self.head.command(sys.executable, "-c", DRIVER, *words), env=self.env(self.head)
        )
        try:
            yield
        finally:
            driver.kill()
            driver.wait(10)

    def until(self, condition: Callable[[list[str], int | None], bool], timeout_s: float = 60) -> float:
        """When the driver saw the living nodes of the other host, and the actor's pid, like this."""
        begin = len(self._lines())

        def found() -> float | None:
            seen = map(json.loads, self._lines()[begin:])
            return next((at for at, nodes, pid in seen if condition(nodes, pid)), None)

        assert processes.wait_until(lambda: found() is not None, timeout_s=timeout_s), self._lines()[-1:]
        return found() or 0.0

    def now(self) -> tuple[list[str], int]:
        """The living nodes of the other host, and the pid of the actor when it answers."""
        self.until(lambda nodes, pid: len(nodes) == 1 and pid is not None)
        _, nodes, pid = next(one for one in map(json.loads, reversed(self._lines())) if one[2] is not None)
        return nodes, pid

    def last_nodes(self) -> list[str]:
        """The living nodes of the other host, as the driver saw them last."""
        return json.loads(self._lines()[-1])[1]

    def _lines(self) -> list[str]:
        return [line for line in (self.shared / "seen").read_text().splitlines(True) if line.endswith("\n")]

    def last_beat(self, pid: int) -> float:
        return float((self.shared / f"beats-{pid}").read_text())


def one(host: hosts.Host, command: str) -> processes.Process:
    """The process of that name on a host."""
    (found,) = [
        process
        for process in host.processes()
        if Path(f"/proc/{process.pid}/comm").read_text().strip() == command
    ]
    return found


@pytest.fixture(scope="module", params=["default", "fast", "lossy"])
def cluster(request) -> Iterator[Cluster]:
    with hosts.hosts(2) as (head, other):
        found = Cluster(head, other, request.param)
        found.start()
        with found.watched():
            yield found


def test_a_host_that_was_cut_off_is_fenced_and_comes_back(cluster):
    if cluster.profile.name == "lossy":
        pytest.skip("there it is to stay: the next test")
    nodes, pid = cluster.now()
    cluster.other.cut()
    cut = time.time()
    dead_s = cluster.until(lambda found, _: found == []) - cut
    assert processes.wait_until(lambda: len(cluster.other.processes()) <= 1, timeout_s=20)
    fenced_s = cluster.last_beat(pid) - cut
    cluster.other.mend()
    mended = time.time()
    back_s = cluster.until(lambda found, _: len(found) == 1) - mended
    answers_s = cluster.until(lambda _, found: found not in (None, pid)) - mended
    again, _ = cluster.now()
    print(
        f"\n{cluster.profile.name}: workers ended {fenced_s:.1f} s after the cut, dead {dead_s:.1f} s; "
        f"back {back_s:.1f} s after it healed, and its actor answers after {answers_s:.1f} s"
    )
    assert again != nodes
    assert fenced_s <= dead_s
    assert dead_s <= 12
    assert back_s <= 30
    assert cluster.last_beat(pid) - cut == fenced_s, "nothing stale went on"


def test_a_cut_that_the_profile_rides_out_costs_nothing(cluster):
    if cluster.profile.name != "lossy":
        pytest.skip("there it is the end of the node: the test before")
    nodes, pid = cluster.now()
    cluster.other.cut()
    assert not processes.wait_until(lambda: cluster.last_nodes() != nodes, timeout_s=30)
    assert time.time() - cluster.last_beat(pid) < 5, "its worker works on"
    mended = time.time()
    cluster.other.mend()
    answers_s = cluster.until(lambda _, found: found == pid) - mended
    print(f"\nlossy: the actor answers {answers_s:.1f} s after a cut of 30 s")
    assert cluster.now() == (nodes, pid)


def test_a_gcs_that_hangs_is_no_cut(cluster):
    before = cluster.now()
    gcs = one(cluster.head, "gcs_server")
    processes.send(gcs, signal.SIGSTOP)
    try:
        fence_s = min(cluster.profile.fence_s, 6) + 3
        assert not processes.wait_until(lambda: len(cluster.other.processes()) <= 1, timeout_s=fence_s)
    finally:
        processes.send(gcs, signal.SIGCONT)
    cluster.until(lambda _, found: found is not None)
    assert cluster.now() == before


def test_a_node_that_crashes_is_started_again_and_one_that_is_stopped_is_not(cluster):
    nodes, _ = cluster.now()
    processes.send(one(cluster.other, "raylet"), signal.SIGKILL)
    cluster.until(lambda found, _: len(found) == 1 and found != nodes)
    cluster.now()
    # As `ray stop` does, which would stop every Ray of this machine.
    processes.send(one(cluster.other, "raylet"), signal.SIGTERM)
    assert processes.wait_until(lambda: cluster.other.processes() == [], timeout_s=40)
